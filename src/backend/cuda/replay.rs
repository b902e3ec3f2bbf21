//! Launches that come again: the step of a chunk is some hundred of them, and the next step is the same
//! but for a few parameters. What came once up to [`Replay::end`] is recorded as a graph, and is
//! launched as one from then on: a node of a graph takes a third of what a launch takes.
//!
//! Launches are held back for as long as they are those of a known sequence. Whatever else is asked of
//! the queue releases them first ([`Replay::cut`]), one by one, so their order is never changed.

use super::device::Launch;
use crate::error::Result;

/// Sequences that are kept; of more, the one not used for longest is forgotten.
const KEPT: usize = 16;
/// A graph of fewer launches is not worth it.
const SHORTEST: usize = 8;

/// One launch with the kernel's parameters, so many bytes in whole words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// All but the parameters.
    pub launch: Launch,
    /// The kernel's own struct.
    pub params: Box<[u64]>,
    /// Its size.
    pub bytes: usize,
}

impl Step {
    /// True if a graph's node for one can become one for the other.
    fn is_like(&self, other: &Self) -> bool {
        self.launch == other.launch && self.bytes == other.bytes
    }
}

/// What launches: a queue of a device. Whatever is launched happens after what was launched before.
pub trait Launcher {
    /// Several launches that are started as one.
    type Graph: Send;

    /// Launches a kernel.
    ///
    /// # Safety
    /// The parameters must be the kernel's own struct, and the addresses in it valid for what the kernel
    /// does with these shapes, until it has run.
    unsafe fn launch(&self, step: &Step) -> Result<()>;

    /// Makes a graph of launches that happen in order.
    ///
    /// # Safety
    /// The parameters must be the kernels' own structs.
    unsafe fn record(&self, steps: &[Step]) -> Result<Self::Graph>;

    /// Gives one launch of a graph other parameters, from its next start on.
    ///
    /// # Safety
    /// `step` must be like the one that the graph has there, and its parameters the kernel's own struct.
    unsafe fn change(&self, graph: &mut Self::Graph, index: usize, step: &Step) -> Result<()>;

    /// Starts a graph of these launches.
    ///
    /// # Safety
    /// As [`Launcher::launch`], for each of them.
    unsafe fn start(&self, graph: &Self::Graph, steps: &[Step]) -> Result<()>;
}

/// A sequence and its graph, which has these parameters.
struct Known<G> {
    steps: Vec<Step>,
    graph: G,
}

/// Launches held back: so many of a known sequence, with these at some places.
#[derive(Default)]
struct Held {
    known: usize,
    count: usize,
    changed: Vec<(usize, Step)>,
}

/// The launches of one queue.
pub struct Replay<G> {
    /// The one used last comes last.
    known: Vec<Known<G>>,
    held: Held,
    /// Launched one by one since the last cut.
    launched: Vec<Step>,
    /// Graphs started so far.
    started: u64,
}

impl<G> Default for Replay<G> {
    fn default() -> Self {
        Self { known: Vec::new(), held: Held::default(), launched: Vec::new(), started: 0 }
    }
}

impl<G> Replay<G> {
    /// Launches, now or, if what was asked for since the last cut may become a known sequence, later.
    ///
    /// # Safety
    /// As [`Launcher::launch`], until the next cut.
    pub unsafe fn launch(&mut self, on: &impl Launcher<Graph = G>, step: Step) -> Result<()> {
        if self.launched.is_empty() && self.follow(&step) {
            let place = &self.known[self.held.known].steps[self.held.count];
            if *place != step {
                self.held.changed.push((self.held.count, step));
            }
            self.held.count += 1;
            return Ok(());
        }
        self.release(on)?;
        // SAFETY: the caller vouches for it.
        unsafe { on.launch(&step)? };
        self.launched.push(step);
        Ok(())
    }

    /// Graphs started so far.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Launches what is held back: something else is to happen after it.
    pub fn cut(&mut self, on: &impl Launcher<Graph = G>) -> Result<()> {
        self.release(on)?;
        self.launched.clear();
        Ok(())
    }

    /// Here ends a sequence, from the last cut on, that may well come again.
    pub fn end(&mut self, on: &impl Launcher<Graph = G>) -> Result<()> {
        let Held { known, count, .. } = self.held;
        if count > 0 && count == self.known[known].steps.len() {
            let mut known = self.known.remove(known);
            for (index, step) in std::mem::take(&mut self.held).changed {
                // SAFETY: it is like the one there; who launched it vouches for it.
                unsafe { on.change(&mut known.graph, index, &step)? };
                known.steps[index] = step;
            }
            // SAFETY: who launched them vouches for them.
            unsafe { on.start(&known.graph, &known.steps)? };
            self.started += 1;
            self.known.push(known);
            return Ok(());
        }
        self.release(on)?;
        let steps = std::mem::take(&mut self.launched);
        if steps.len() >= SHORTEST {
            // SAFETY: as above.
            let graph = unsafe { on.record(&steps)? };
            if self.known.len() == KEPT {
                self.known.remove(0);
            }
            self.known.push(Known { steps, graph });
        }
        Ok(())
    }

    /// Looks for a known sequence that begins with what is held back and goes on with `step`: the one
    /// followed so far, or else the one used last.
    fn follow(&mut self, step: &Step) -> bool {
        let Held { known, count, .. } = self.held;
        let goes_on = |known: &Known<G>| known.steps.get(count).is_some_and(|s| s.is_like(step));
        if count > 0 && goes_on(&self.known[known]) {
            return true;
        }
        let begun = self.held_steps();
        let begins = |known: &Known<G>| known.steps.iter().zip(&begun).all(|(a, b)| a.is_like(b));
        let Some(found) = self.known.iter().rposition(|known| goes_on(known) && begins(known))
        else {
            return false;
        };
        let places = begun.into_iter().enumerate().zip(&self.known[found].steps);
        let changed = places.filter(|((_, step), place)| step != *place).map(|(step, _)| step);
        self.held = Held { known: found, count, changed: changed.collect() };
        true
    }

    fn held_steps(&self) -> Vec<Step> {
        let Held { known, count, changed } = &self.held;
        let mut steps = self.known.get(*known).map_or(vec![], |k| k.steps[..*count].to_vec());
        for (index, step) in changed {
            steps[*index] = step.clone();
        }
        steps
    }

    fn release(&mut self, on: &impl Launcher<Graph = G>) -> Result<()> {
        let steps = self.held_steps();
        self.held = Held::default();
        for step in steps {
            // SAFETY: who launched it vouches for it.
            unsafe { on.launch(&step)? };
            self.launched.push(step);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Notes what is launched, and how many graphs were recorded.
    #[derive(Default)]
    struct Notes {
        launched: RefCell<Vec<Step>>,
        recorded: RefCell<usize>,
    }

    impl Launcher for Notes {
        type Graph = Vec<Step>;

        unsafe fn launch(&self, step: &Step) -> Result<()> {
            self.launched.borrow_mut().push(step.clone());
            Ok(())
        }

        unsafe fn record(&self, steps: &[Step]) -> Result<Vec<Step>> {
            *self.recorded.borrow_mut() += 1;
            Ok(steps.to_vec())
        }

        unsafe fn change(&self, graph: &mut Vec<Step>, index: usize, step: &Step) -> Result<()> {
            assert!(graph[index].is_like(step), "a node keeps its shape");
            graph[index] = step.clone();
            Ok(())
        }

        unsafe fn start(&self, graph: &Vec<Step>, steps: &[Step]) -> Result<()> {
            assert_eq!(graph, steps, "the graph has the parameters that are asked for");
            self.launched.borrow_mut().extend_from_slice(graph);
            Ok(())
        }
    }

    fn step(grid: u32, param: u64) -> Step {
        let launch = Launch { kernel: "gelu", grid: [grid, 1, 1], threads: 32, shared_bytes: 0 };
        Step { launch, params: Box::new([param]), bytes: 8 }
    }

    /// Goal: whatever comes in whatever order, all of it is launched, in order and with its own
    /// parameters, by the next cut; and sequences that come again become graphs.
    #[test]
    fn nothing_is_lost_or_changes_places() {
        // Sequences that share beginnings, one the beginning of another, one too short.
        let shapes: [&[u32]; 5] = [
            &[1, 2, 3, 4, 5, 6, 7, 8, 9],
            &[1, 2, 3, 4, 5, 6, 7, 8, 10],
            &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
            &[4, 4, 4, 4, 4, 4, 4, 4],
            &[1, 2],
        ];
        for seed in 0..300u64 {
            let (on, mut replay, mut asked) = (Notes::default(), Replay::default(), Vec::new());
            let mut random = crate::tensor::random(seed, 1.0, 400).into_iter();
            let mut draw = |count: usize| {
                let unit = f64::from(f32::from(random.next().expect("enough numbers"))) / 2.0 + 0.5;
                (unit * count as f64).min(count as f64 - 1.0) as usize
            };
            for _ in 0..40 {
                let shape = shapes[draw(shapes.len())];
                let taken = if draw(5) == 0 { draw(shape.len()) } else { shape.len() };
                for (index, &grid) in shape[..taken].iter().enumerate() {
                    let param = if index % 4 == 1 { asked.len() as u64 } else { 0 };
                    asked.push(step(grid, param));
                    // SAFETY: nothing is launched.
                    unsafe { replay.launch(&on, step(grid, param)).unwrap() };
                }
                match draw(4) {
                    0 => {
                        replay.cut(&on).unwrap();
                        assert_eq!(*on.launched.borrow(), asked, "seed {seed}");
                    }
                    1 => {}
                    _ => replay.end(&on).unwrap(),
                }
            }
            replay.cut(&on).unwrap();
            assert_eq!(*on.launched.borrow(), asked, "seed {seed}");
        }
    }

    /// Goal: a step that comes again is recorded once and started from then on, also when others come
    /// in between; the least used is forgotten.
    #[test]
    fn what_comes_again_is_started_as_a_graph() {
        let (on, mut replay) = (Notes::default(), Replay::default());
        let mut run = |first: u32, param: u64| {
            for grid in first..first + 10 {
                // SAFETY: nothing is launched.
                unsafe { replay.launch(&on, step(grid, param)).unwrap() };
            }
            replay.end(&on).unwrap();
        };
        for round in 0..5 {
            run(1, round);
            run(100, round);
        }
        assert_eq!(*on.recorded.borrow(), 2);
        for other in 0..KEPT as u32 {
            run(1000 + 100 * other, 0);
        }
        run(1, 0);
        assert_eq!((*on.recorded.borrow(), replay.started()), (2 + KEPT + 1, 8));
    }
}
