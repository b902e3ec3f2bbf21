//! Who runs next. Searches are admitted in order, and small ones may overtake, within a bound: slots and pages of
//! their own, which large ones do not get. Where large ones make a step long, small ones get steps of their own in
//! between.

/// Tokens that a small search draws at most, all candidates together.
pub const SMALL: usize = 512;
/// Candidates of large searches that make a step longer than one of small searches alone.
pub const CROWD: usize = 512;
/// Ticks of small searches alone between two ticks of all.
pub const ALONE: usize = 3;
/// Small searches get one more slot for each of this many slots.
const SLOTS: usize = 4;
/// One page of this many is kept for small searches.
const PAGES: usize = 8;

/// Room for those that are admitted in order, or for those that overtake.
pub struct Room {
    /// Searches.
    pub slots: usize,
    /// Pages of each pool.
    pub pages: Vec<usize>,
}

impl Room {
    /// Room for all that is admitted in order.
    pub fn in_order(in_flight: usize, capacity: &[usize], small_first: bool) -> Self {
        let kept = |pages: &usize| if small_first { pages / PAGES } else { 0 };
        let pages = capacity.iter().map(|pages| pages - kept(pages)).collect();
        Self { slots: in_flight, pages }
    }

    /// Room for those that overtake.
    pub fn to_overtake(in_flight: usize, capacity: &[usize]) -> Self {
        let pages = capacity.iter().map(|pages| pages / PAGES).collect();
        Self { slots: (in_flight / SLOTS).max(1), pages }
    }

    /// Takes room for one search, if there is enough.
    pub fn take(&mut self, needed: &[usize]) -> bool {
        let fits = self.slots > 0 && needed.iter().zip(&self.pages).all(|(n, free)| n <= free);
        if fits {
            self.give(needed);
        }
        fits
    }

    /// Counts one search in that runs already.
    pub fn give(&mut self, needed: &[usize]) {
        self.slots = self.slots.saturating_sub(1);
        for (free, needed) in self.pages.iter_mut().zip(needed) {
            *free = free.saturating_sub(*needed);
        }
    }
}
