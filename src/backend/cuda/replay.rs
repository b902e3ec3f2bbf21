//! Launches that come again: the step of a chunk is some hundred of them, and the next step is the same
//! but for a few parameters. What came once up to [`Replay::end`] is recorded as a graph, and is
//! launched as one from then on: a node of a graph takes a third of what a launch takes.
//!
//! Launches are held back for as long as they are those of a known sequence. Whatever else is asked of
//! the queue releases them first ([`Replay::cut`]), one by one, so their order is never changed.
//!
//! A launch starts early only behind another launch of the same sequence: in front of a sequence's first
//! one may stand a copy, or a wait for another queue.

use std::ffi::c_void;
use std::fmt::Debug;
use std::mem::{self, MaybeUninit};

use super::device::Launch;
use crate::error::{Error, Result};

/// Sequences that are kept; of more, the one not used for longest is forgotten.
const KEPT: usize = 16;
/// A graph of fewer launches is not worth it.
const SHORTEST: usize = 8;

/// Characters of a launch's parameters in an error's message.
const SHOWN_PARAMS: usize = 400;

/// What a kernel is launched with, its own struct.
pub trait Params: Copy + Debug + PartialEq {}
impl<P: Copy + Debug + PartialEq> Params for P {}

/// One launch with the kernel's parameters.
#[derive(Clone, Debug)]
pub struct Step {
    /// All but the parameters.
    pub launch: Launch,
    /// The kernel's own struct, padding and all.
    params: Box<[MaybeUninit<u64>]>,
    /// Its size.
    pub bytes: usize,
    same: unsafe fn(*const c_void, *const c_void) -> bool,
    show: unsafe fn(*const c_void) -> String,
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        // SAFETY: launches of one kernel have its own struct.
        self.is_like(other) && unsafe { (self.same)(self.params(), other.params()) }
    }
}

impl Step {
    /// A launch with a copy of the kernel's own struct.
    pub fn new<P: Params>(launch: Launch, params: &P) -> Self {
        const { assert!(align_of::<P>() <= align_of::<u64>()) };
        let words = size_of::<P>().div_ceil(size_of::<u64>());
        let mut copy = vec![MaybeUninit::uninit(); words].into_boxed_slice();
        // SAFETY: aligned, and large enough.
        unsafe { copy.as_mut_ptr().cast::<P>().write(*params) };
        // SAFETY: both are called with a P.
        let same = |a: *const c_void, b: *const c_void| unsafe { *a.cast::<P>() == *b.cast::<P>() };
        // SAFETY: as above.
        let show = |params: *const c_void| format!("{:?}", unsafe { &*params.cast::<P>() });
        Self { launch, params: copy, bytes: size_of::<P>(), same, show }
    }

    /// The kernel's own struct.
    pub fn params(&self) -> *const c_void {
        self.params.as_ptr().cast()
    }

    /// True if a graph's node for one can become one for the other.
    fn is_like(&self, other: &Self) -> bool {
        self.launch == other.launch && self.bytes == other.bytes
    }

    /// The error of this launch with what it was launched with; long lists are cut.
    fn explain(&self, error: Error) -> Error {
        match error {
            Error::Cuda { what, reason } => {
                // SAFETY: its own parameters.
                let params = unsafe { (self.show)(self.params()) };
                let params: String = params.chars().take(SHOWN_PARAMS).collect();
                Error::Cuda { what: format!("{what}, {params}"), reason }
            }
            error => error,
        }
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
    /// The device would not record a graph; it is not asked again.
    refused: bool,
    /// Why launches were lost that nobody has been told of.
    failed: Option<Error>,
}

impl<G> Default for Replay<G> {
    fn default() -> Self {
        Self {
            known: Vec::new(),
            held: Held::default(),
            launched: Vec::new(),
            refused: false,
            failed: None,
        }
    }
}

impl<G> Replay<G> {
    /// Launches, now or, if what was asked for since the last cut may become a known sequence, later.
    ///
    /// # Safety
    /// As [`Launcher::launch`], until the next cut.
    pub unsafe fn launch(&mut self, on: &impl Launcher<Graph = G>, mut step: Step) -> Result<()> {
        self.tell()?;
        step.launch.early &= self.held.count > 0 || !self.launched.is_empty();
        if self.launched.is_empty() && self.follow(&step) {
            let place = &self.known[self.held.known].steps[self.held.count];
            if *place != step {
                self.held.changed.push((self.held.count, step));
            }
            self.held.count += 1;
            return Ok(());
        }
        self.release(on)?;
        self.launch_now(on, step)
    }

    /// Launches what is held back: something else is to happen after it.
    pub fn cut(&mut self, on: &impl Launcher<Graph = G>) -> Result<()> {
        self.release(on)?;
        self.launched.clear();
        Ok(())
    }

    /// [`Replay::cut`] for somebody who does not ask for this queue's results: whoever does is told of
    /// the error.
    pub fn cut_unasked(&mut self, on: &impl Launcher<Graph = G>) {
        if let Err(error) = self.cut(on) {
            self.failed = Some(error);
        }
    }

    /// Here ends a sequence, from the last cut on, that may well come again. True if it was started as a
    /// graph.
    pub fn end(&mut self, on: &impl Launcher<Graph = G>) -> Result<bool> {
        let count = self.held.count;
        let whole = |known: &Known<G>| known.steps.len() == count;
        if count > 0 && (whole(&self.known[self.held.known]) || self.switch(whole)) {
            return self.start(on);
        }
        self.release(on)?;
        let steps = mem::take(&mut self.launched);
        if steps.len() < SHORTEST || self.refused {
            return Ok(false);
        }
        // SAFETY: who launched them vouches for them.
        match unsafe { on.record(&steps) } {
            Ok(graph) => {
                if self.known.len() == KEPT {
                    self.known.remove(0);
                }
                self.known.push(Known { steps, graph });
            }
            // It has all been launched: without graphs the same happens, only slower.
            Err(_) => self.refused = true,
        }
        Ok(false)
    }

    /// Starts the graph of the known sequence that is held back as a whole.
    fn start(&mut self, on: &impl Launcher<Graph = G>) -> Result<bool> {
        let Held { known, changed, .. } = mem::take(&mut self.held);
        let Known { mut steps, mut graph } = self.known.remove(known);
        let mut changes = changed.into_iter().map(|(index, step)| {
            steps[index] = step;
            // SAFETY: it is like the one there; who launched it vouches for it.
            unsafe { on.change(&mut graph, index, &steps[index]) }
        });
        // All of them, for the sake of `steps`.
        let changed = changes.by_ref().fold(Ok(()), Result::and);
        drop(changes);
        // SAFETY: who launched them vouches for them.
        if changed.and_then(|()| unsafe { on.start(&graph, &steps) }).is_ok() {
            self.known.push(Known { steps, graph });
            return Ok(true);
        }
        // Without this graph: each launch says by itself what is wrong, if it is not the graph alone.
        steps.into_iter().try_for_each(|step| self.launch_now(on, step))?;
        self.launched.clear();
        Ok(false)
    }

    /// Looks for a known sequence that begins with what is held back and goes on with `step`: the one
    /// followed so far, or else the one used last.
    fn follow(&mut self, step: &Step) -> bool {
        let Held { known, count, .. } = self.held;
        let goes_on = |known: &Known<G>| known.steps.get(count).is_some_and(|s| s.is_like(step));
        count > 0 && goes_on(&self.known[known]) || self.switch(goes_on)
    }

    /// Follows another known sequence, one that begins with what is held back and `fits`: the one used
    /// last, if there is one.
    fn switch(&mut self, fits: impl Fn(&Known<G>) -> bool) -> bool {
        let begun = self.held_steps();
        let begins = |known: &Known<G>| {
            known.steps.len() >= begun.len()
                && known.steps.iter().zip(&begun).all(|(a, b)| a.is_like(b))
        };
        let Some(found) = self.known.iter().rposition(|known| fits(known) && begins(known)) else {
            return false;
        };
        let count = begun.len();
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
        self.tell()?;
        let steps = self.held_steps();
        self.held = Held::default();
        steps.into_iter().try_for_each(|step| self.launch_now(on, step))
    }

    /// Returns an error that nobody was told of, if there is one.
    fn tell(&mut self) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn launch_now(&mut self, on: &impl Launcher<Graph = G>, step: Step) -> Result<()> {
        // SAFETY: who asked for it vouches for it.
        unsafe { on.launch(&step) }.map_err(|error| step.explain(error))?;
        self.launched.push(step);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// Notes what is launched, and how many graphs were recorded; refuses what it is told to refuse.
    #[derive(Default)]
    struct Notes {
        launched: RefCell<Vec<Step>>,
        recorded: Cell<usize>,
        refused: Cell<Option<&'static str>>,
    }

    impl Notes {
        fn ask(&self, what: &'static str) -> Result<()> {
            match self.refused.get() {
                Some(refused) if refused == what => {
                    Err(Error::Cuda { what: what.into(), reason: "refused".into() })
                }
                _ => Ok(()),
            }
        }
    }

    impl Launcher for Notes {
        type Graph = Vec<Step>;

        unsafe fn launch(&self, step: &Step) -> Result<()> {
            self.ask("launch")?;
            self.launched.borrow_mut().push(step.clone());
            Ok(())
        }

        unsafe fn record(&self, steps: &[Step]) -> Result<Vec<Step>> {
            self.ask("record")?;
            self.recorded.set(self.recorded.get() + 1);
            Ok(steps.to_vec())
        }

        unsafe fn change(&self, graph: &mut Vec<Step>, index: usize, step: &Step) -> Result<()> {
            self.ask("change")?;
            assert!(graph[index].is_like(step), "a node keeps its shape");
            graph[index] = step.clone();
            Ok(())
        }

        unsafe fn start(&self, graph: &Vec<Step>, steps: &[Step]) -> Result<()> {
            self.ask("start")?;
            assert_eq!(graph, steps, "the graph has the parameters that are asked for");
            self.launched.borrow_mut().extend_from_slice(graph);
            Ok(())
        }
    }

    fn step(grid: u32, param: u64) -> Step {
        let (kernel, grid) = ("rope", [grid, 1, 1]);
        Step::new(Launch { kernel, early: false, grid, threads: 32, shared_bytes: 0 }, &param)
    }

    /// Goal: whatever comes in whatever order, all of it is launched, in order and with its own
    /// parameters, by the next cut, also where graphs are refused.
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
                // Once a graph was refused to be recorded, none is again.
                let refusals = [None, None, Some("change"), Some("start"), Some("record")];
                on.refused.set(refusals[draw(if seed % 2 == 0 { 5 } else { 4 })]);
                match draw(4) {
                    0 => {
                        replay.cut(&on).unwrap();
                        assert_eq!(*on.launched.borrow(), asked, "seed {seed}");
                    }
                    1 => {}
                    _ => {
                        replay.end(&on).unwrap();
                    }
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
        let (on, mut replay, mut started) = (Notes::default(), Replay::default(), 0);
        let mut run = |first: u32, param: u64| {
            for grid in first..first + 10 {
                // SAFETY: nothing is launched.
                unsafe { replay.launch(&on, step(grid, param)).unwrap() };
            }
            started += u32::from(replay.end(&on).unwrap());
        };
        for round in 0..5 {
            run(1, round);
            run(100, round);
        }
        assert_eq!(on.recorded.get(), 2);
        for other in 0..KEPT as u32 {
            run(1000 + 100 * other, 0);
        }
        run(1, 0);
        assert_eq!((on.recorded.get(), started), (2 + KEPT + 1, 8));
    }

    /// Goal: of two sequences one of which is the beginning of the other, both are known.
    #[test]
    fn a_sequence_may_be_the_beginning_of_another() {
        let (on, mut replay, mut started) = (Notes::default(), Replay::default(), 0);
        for len in [10, 12, 10, 12, 12, 10, 10] {
            for grid in 0..len {
                // SAFETY: nothing is launched.
                unsafe { replay.launch(&on, step(1 + grid, u64::from(len))).unwrap() };
            }
            started += u32::from(replay.end(&on).unwrap());
        }
        assert_eq!((on.recorded.get(), started), (2, 5));
    }

    /// Goal: a launch starts early only right behind another one: not behind a cut nor behind the end of
    /// a sequence, launched one by one as well as in graphs.
    #[test]
    fn first_after_a_cut_is_not_early() {
        let (on, mut replay) = (Notes::default(), Replay::default());
        for round in 0..6 {
            for grid in 1..=10 {
                let mut step = step(grid, round);
                step.launch.early = grid != 5;
                // SAFETY: nothing is launched.
                unsafe { replay.launch(&on, step).unwrap() };
                if round == 4 && grid == 3 {
                    replay.cut(&on).unwrap();
                }
            }
            let started = replay.end(&on).unwrap();
            assert_eq!(started, ![0, 4].contains(&round), "round {round}");
        }
        for (index, step) in on.launched.borrow().iter().enumerate() {
            let late = [1, 5].contains(&step.launch.grid[0]) || index == 43;
            assert_eq!(step.launch.early, !late, "launch {index}");
        }
    }

    /// Goal: an error that showed where nobody asked for results reaches whoever asks next, with what
    /// was launched; what comes after it is launched again.
    #[test]
    fn an_error_waits_for_whoever_asks() {
        let (on, mut replay) = (Notes::default(), Replay::default());
        // SAFETY: nothing is launched.
        let launch = |replay: &mut Replay<_>, grid| unsafe { replay.launch(&on, step(grid, 7)) };
        for grid in 1..10 {
            launch(&mut replay, grid).unwrap();
        }
        replay.end(&on).unwrap();
        launch(&mut replay, 1).unwrap();
        on.refused.set(Some("launch"));
        replay.cut_unasked(&on);
        on.refused.set(None);
        let told = launch(&mut replay, 1).unwrap_err().to_string();
        assert!(told.contains("launch, 7: refused"), "{told}");
        launch(&mut replay, 5).unwrap();
        replay.cut(&on).unwrap();
        assert_eq!(on.launched.borrow().len(), 10);
    }
}
