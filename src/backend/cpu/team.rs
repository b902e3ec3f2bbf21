//! Threads that work on one op together.
//!
//! An op of a small model takes some ten microseconds, and there are a hundred in a step: waking a
//! thread for each would take as long as its work. So members wait for the next op awake, but not for
//! long: who finds none within [`PATIENCE`] sleeps until there is one.

use std::any::Any;
use std::hint;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};

/// How often a member that waits looks before it sleeps: 20 to 50 microseconds, as long as what one
/// thread does alone between two ops usually takes.
const PATIENCE: usize = 1000;

/// Some threads and who calls them, which is one of the team.
pub struct Team {
    shared: Arc<Shared>,
    /// Held while the team works: who finds it busy works alone.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

/// A member's items that nobody has taken yet, from the lower half's number to the upper half's.
#[repr(align(128))]
struct Items(AtomicU64);

struct Shared {
    /// Each member's items; the caller's are the first.
    items: Box<[Items]>,
    /// The work at hand: valid for who is inside the gate.
    work: AtomicPtr<Work<'static>>,
    /// How many workers are inside, and [`SHUT`] while there is nothing to do.
    gate: AtomicUsize,
    /// Changes with each piece of work.
    round: AtomicUsize,
    /// Workers that sleep, or are about to.
    asleep: Box<[AtomicBool]>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    over: AtomicBool,
}

/// What a member does with the items that it can get.
type Work<'a> = &'a (dyn Fn(&mut dyn FnMut() -> Option<usize>) + Sync);

const SHUT: usize = 1 << (usize::BITS - 1);

impl Team {
    /// A team of `members`, the caller among them.
    ///
    /// # Errors
    /// The system's, when it has no thread left.
    pub fn new(members: usize) -> std::io::Result<Self> {
        let workers = members.max(1) - 1;
        let shared = Arc::new(Shared {
            items: (0..=workers).map(|_| Items(AtomicU64::new(0))).collect(),
            work: AtomicPtr::new(ptr::null_mut()),
            gate: AtomicUsize::new(SHUT),
            round: AtomicUsize::new(0),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
            over: AtomicBool::new(false),
        });
        let mut team = Self { shared, turn: Mutex::new(()), workers: Vec::new() };
        for worker in 0..workers {
            let shared = team.shared.clone();
            let thread = thread::Builder::new().name(format!("cpu-{}", worker + 1));
            team.workers.push(thread.spawn(move || shared.serve(worker))?);
        }
        Ok(team)
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.workers.len() + 1
    }

    /// `each(item)` for all of `0..items`, each once, by whichever member takes it; in order, by the
    /// caller, unless sharing them out is `worth_while`. Neighbours among the items mostly run one after
    /// the other on one member.
    pub fn each(&self, items: usize, worth_while: bool, each: impl Fn(usize) + Sync) {
        self.each_with(items, worth_while, || (), |(), item| each(item));
    }

    /// [`each`](Self::each), with something that every member that takes items makes for itself.
    pub fn each_with<T>(
        &self,
        items: usize,
        worth_while: bool,
        make: impl Fn() -> T + Sync,
        each: impl Fn(&mut T, usize) + Sync,
    ) {
        let work = |next: &mut dyn FnMut() -> Option<usize>| {
            let Some(first) = next() else { return };
            let mut own = make();
            each(&mut own, first);
            while let Some(item) = next() {
                each(&mut own, item);
            }
        };
        let alone = || {
            let mut items = 0..items;
            work(&mut || items.next());
        };
        if !worth_while || items <= 1 || self.workers.is_empty() {
            return alone();
        }
        let turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            // By a panic that is the caller's matter: nothing of the team's own is broken.
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => return alone(),
        };
        self.work(items, &work);
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Some(panic) = panic {
            panic::resume_unwind(panic);
        }
    }

    fn work(&self, items: usize, work: Work<'_>) {
        let shared = &*self.shared;
        let items = u32::try_from(items).expect("fewer than 2^32 items");
        let members = self.members() as u64;
        // Nobody is inside the gate.
        let part = |member: u64| (u64::from(items) * member / members) as u32;
        for (member, items) in (0..).zip(&shared.items) {
            items.0.store(pack(part(member), part(member + 1)), Ordering::Relaxed);
        }
        let mut work: Work<'static> = {
            // SAFETY: the workers use it only inside the gate, and before this function returns the
            // gate is shut with nobody inside.
            unsafe { mem::transmute::<Work<'_>, Work<'static>>(work) }
        };
        shared.work.store(&raw mut work, Ordering::Relaxed);
        // Opens the gate; what was written before is there for who enters.
        shared.gate.fetch_and(!SHUT, Ordering::Release);
        shared.round.fetch_add(1, Ordering::Release);
        // Either a worker that lies down sees the new round, or it is seen here.
        fence(Ordering::SeqCst);
        for (asleep, worker) in shared.asleep.iter().zip(&self.workers) {
            if asleep.load(Ordering::Relaxed) {
                worker.thread().unpark();
            }
        }
        shared.take_part(0, work);
        // Who has not come yet finds nothing left.
        shared.gate.fetch_or(SHUT, Ordering::Relaxed);
        let mut looks = 0;
        while shared.gate.load(Ordering::Acquire) != SHUT {
            looks += 1;
            if looks > PATIENCE {
                thread::yield_now();
            } else {
                hint::spin_loop();
            }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.shared.round.fetch_add(1, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // It has caught its panics.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn serve(&self, worker: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait(worker, seen);
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            if self.gate.fetch_add(1, Ordering::Acquire) & SHUT == 0 {
                // SAFETY: inside the gate there is work, and it lives as long as somebody is inside.
                let work = unsafe { *self.work.load(Ordering::Relaxed) };
                self.take_part(worker + 1, work);
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for another round than the `seen` one, and says which it is.
    fn wait(&self, worker: usize, seen: usize) -> usize {
        let news = || Some(self.round.load(Ordering::Acquire)).filter(|&round| round != seen);
        for _ in 0..PATIENCE {
            if let Some(round) = news() {
                return round;
            }
            hint::spin_loop();
        }
        let asleep = &self.asleep[worker];
        asleep.store(true, Ordering::Relaxed);
        let round = loop {
            // Either this sees the new round, or who began it sees that somebody sleeps.
            fence(Ordering::SeqCst);
            if let Some(round) = news() {
                break round;
            }
            thread::park();
        };
        asleep.store(false, Ordering::Relaxed);
        round
    }

    /// Works on a member's own items, then on what others have left.
    fn take_part(&self, member: usize, work: Work<'_>) {
        let mut next = || {
            let own = self.items[member].take_first();
            own.or_else(|| {
                let others = self.items[member + 1..].iter().chain(&self.items[..member]);
                others.into_iter().find_map(Items::take_last)
            })
        };
        let done = panic::catch_unwind(AssertUnwindSafe(|| work(&mut next)));
        if let Err(reason) = done {
            let mut panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            match &*panic {
                None => *panic = Some(reason),
                // One is enough; dropping another might panic in its turn.
                Some(_) => mem::forget(reason),
            }
        }
    }
}

impl Items {
    /// The first item, for who has them: neighbours follow one another in memory, too.
    fn take_first(&self) -> Option<usize> {
        self.take(|first, end| (first, (first + 1, end)))
    }

    /// The last item, for others.
    fn take_last(&self) -> Option<usize> {
        self.take(|first, end| (end - 1, (first, end - 1)))
    }

    fn take(&self, split: impl Fn(u32, u32) -> (u32, (u32, u32))) -> Option<usize> {
        let mut taken = None;
        let rest = |items: u64| {
            let (first, end) = (items as u32, (items >> 32) as u32);
            if first == end {
                return None;
            }
            let (item, (first, end)) = split(first, end);
            taken = Some(item as usize);
            Some(pack(first, end))
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).ok()?;
        taken
    }
}

fn pack(first: u32, end: u32) -> u64 {
    u64::from(first) | u64::from(end) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// How often each of `items` was handed out.
    fn counts(team: &Team, items: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
        team.each(items, true, |item| {
            counts[item].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    /// Goal: every item once, whatever the members' number, awake or asleep.
    #[test]
    fn every_item_is_done_once() {
        for members in [1, 2, 3, 8] {
            let team = Team::new(members).expect("threads");
            assert_eq!(team.members(), members);
            for round in 0..300 {
                for items in [0, 1, 2, 7, 100] {
                    assert_eq!(counts(&team, items), vec![1; items], "{members} members");
                }
                if round % 100 == 0 {
                    // So long that they fall asleep.
                    thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    /// Goal: an op's panic reaches who asked for the op, and the team goes on.
    #[test]
    fn a_panic_reaches_the_caller() {
        let team = Team::new(3).expect("threads");
        for bad in [0, 50, 99] {
            let failed = panic::catch_unwind(AssertUnwindSafe(|| {
                team.each(100, true, |item| assert!(item != bad, "item {item}"));
            }));
            let reason = failed.expect_err("it panicked");
            assert_eq!(reason.downcast_ref::<String>(), Some(&format!("item {bad}")));
            assert_eq!(counts(&team, 100), vec![1; 100]);
        }
    }

    /// Goal: a panic reaches its own caller and nobody else, however many there are.
    #[test]
    fn a_panic_stays_with_its_caller() {
        let team = Team::new(2).expect("threads");
        let caller = &|bad: Option<usize>| {
            for _ in 0..300 {
                let done = panic::catch_unwind(AssertUnwindSafe(|| {
                    team.each(20, true, |item| {
                        if Some(item) == bad {
                            panic::resume_unwind(Box::new(item));
                        }
                    });
                }));
                let reason = done.err().and_then(|reason| reason.downcast_ref().copied());
                assert_eq!(reason, bad);
            }
        };
        thread::scope(|scope| {
            for bad in [None, Some(3), None, Some(17)] {
                scope.spawn(move || caller(bad));
            }
        });
    }

    /// Goal: who finds the team at work, from without or from within, works alone and is not stuck.
    #[test]
    fn a_busy_team_is_not_waited_for() {
        let team = Team::new(2).expect("threads");
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        assert_eq!(counts(&team, 20), vec![1; 20]);
                    }
                });
            }
        });
        let within = AtomicUsize::new(0);
        team.each(10, true, |_| {
            within.fetch_add(counts(&team, 5).len(), Ordering::Relaxed);
        });
        assert_eq!(within.into_inner(), 50);
    }

    /// Goal: what a member makes for itself is made once a member at most, and only for items.
    #[test]
    fn members_make_their_own() {
        let team = Team::new(4).expect("threads");
        let (made, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let make = || made.fetch_add(1, Ordering::Relaxed);
        team.each_with(0, true, make, |_, _| unreachable!("no items"));
        assert_eq!(made.load(Ordering::Relaxed), 0);
        team.each_with(1000, true, make, |_, _| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert!((1..=4).contains(&made.load(Ordering::Relaxed)));
        assert_eq!(done.into_inner(), 1000);
    }
}
