//! The emulator's queues: what is asked for is done as late as a device may do it, when somebody
//! waits, and the queues' work is shuffled as far as [`Queues::after`] leaves it open. So a join
//! that is missing gives wrong results under some seed. A task that may start early comes in one go
//! with the one in front of it, or by itself.

use std::collections::VecDeque;

/// Tasks of several queues that are still to be done.
pub struct Queues<T> {
    queues: Vec<Queue<T>>,
    /// State of a splitmix64.
    random: u64,
}

struct Queue<T> {
    pending: VecDeque<Step<T>>,
    /// Steps that were asked for, and that are done.
    asked: u64,
    done: u64,
}

enum Step<T> {
    Do {
        task: T,
        /// It may start before the task in front of it is done.
        early: bool,
    },
    /// Nothing is done until `queue` has done so many steps.
    After { queue: usize, done: u64 },
}

impl<T> Queues<T> {
    /// No queues yet; they will be shuffled by `seed`.
    pub fn new(seed: u64) -> Self {
        Self { queues: Vec::new(), random: seed }
    }

    /// The number of a new queue.
    pub fn open(&mut self) -> usize {
        self.queues.push(Queue { pending: VecDeque::new(), asked: 0, done: 0 });
        self.queues.len() - 1
    }

    /// One more task at the end of a queue.
    pub fn ask(&mut self, queue: usize, task: T) {
        self.push(queue, Step::Do { task, early: false });
    }

    /// One more task at the end of a queue that may start before the one in front of it is done.
    pub fn ask_early(&mut self, queue: usize, task: T) {
        self.push(queue, Step::Do { task, early: true });
    }

    /// What `queue` is asked for from now on waits for what `other` was asked for until now.
    pub fn after(&mut self, queue: usize, other: usize) {
        let done = self.queues[other].asked;
        self.push(queue, Step::After { queue: other, done });
    }

    fn push(&mut self, queue: usize, step: Step<T>) {
        self.queues[queue].pending.push_back(step);
        self.queues[queue].asked += 1;
    }

    /// Does all that `queue` was asked for, and of the others what it needs and a little more. `run` gets
    /// a task and those behind it that start early, each before the one in front of it is done.
    pub fn wait(&mut self, queue: usize, mut run: impl FnMut(Vec<T>)) {
        // Some waits step by step, some in long bursts: side by side, or one long before the other.
        let longest = self.below(8) + 1;
        while !self.queues[queue].pending.is_empty() {
            let chosen = match self.below(2) {
                0 => queue,
                _ => self.below(self.queues.len()),
            };
            for _ in 0..1 << self.below(longest) {
                self.step(chosen, &mut run);
            }
        }
    }

    /// Does all that was asked for.
    pub fn wait_for_all(&mut self, mut run: impl FnMut(Vec<T>)) {
        for _ in 0..self.queues.len() {
            let any = self.below(self.queues.len());
            self.wait(any, &mut run);
        }
        for queue in 0..self.queues.len() {
            self.wait(queue, &mut run);
        }
    }

    /// Does the next step of a queue, or of one that it waits for, if there is any, and those behind it
    /// that are drawn to start early.
    fn step(&mut self, mut queue: usize, run: &mut impl FnMut(Vec<T>)) {
        while let Some(&Step::After { queue: other, done }) = self.queues[queue].pending.front()
            && self.queues[other].done < done
        {
            queue = other;
        }
        let mut tasks = Vec::new();
        while let Some(step) = self.queues[queue].pending.pop_front() {
            self.queues[queue].done += 1;
            let Step::Do { task, .. } = step else { break };
            tasks.push(task);
            let next = self.queues[queue].pending.front();
            if !matches!(next, Some(Step::Do { early: true, .. })) || self.below(2) == 0 {
                break;
            }
        }
        if !tasks.is_empty() {
            run(tasks);
        }
    }

    /// A random number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((bits ^ (bits >> 31)) % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The order in which two queues of three tasks are done, the second waiting for the first
    /// after its first task if `joined`.
    fn order(seed: u64, joined: bool) -> Vec<(usize, usize)> {
        let mut queues = Queues::new(seed);
        let (a, b) = (queues.open(), queues.open());
        (0..3).for_each(|i| queues.ask(a, (a, i)));
        queues.ask(b, (b, 0));
        if joined {
            queues.after(b, a);
        }
        (1..3).for_each(|i| queues.ask(b, (b, i)));
        let mut done = Vec::new();
        queues.wait(b, |tasks| done.extend(tasks));
        assert!((0..3).all(|i| done.contains(&(b, i))), "what is waited for is done");
        queues.wait_for_all(|tasks| done.extend(tasks));
        done
    }

    /// Goal: a task that may start early does so under some seed and not under another, and no other
    /// task ever does.
    #[test]
    fn only_early_tasks_start_early() {
        let mut seen = HashSet::new();
        for seed in 0..200 {
            let mut queues = Queues::new(seed);
            let queue = queues.open();
            for task in 0..6 {
                match task {
                    1 | 2 | 4 => queues.ask_early(queue, task),
                    _ => queues.ask(queue, task),
                }
            }
            let mut done = Vec::new();
            queues.wait(queue, |tasks| done.push(tasks));
            assert_eq!(done.concat(), [0, 1, 2, 3, 4, 5]);
            seen.insert(done.iter().map(|tasks| tasks[0]).collect::<Vec<_>>());
        }
        assert!(seen.iter().all(|firsts| [0, 3, 5].iter().all(|task| firsts.contains(task))));
        assert_eq!(seen.len(), 8);
    }

    /// Goal: each queue keeps its own order, `after` is kept, and what it leaves open happens in
    /// every way: all before, all after, and mixed.
    #[test]
    fn queues_are_shuffled_as_far_as_they_may_be() {
        let (mut free, mut joined) = (HashSet::new(), HashSet::new());
        for seed in 0..20_000 {
            free.insert(order(seed, false));
            joined.insert(order(seed, true));
        }
        for done in free.iter().chain(&joined) {
            for queue in 0..2 {
                let own: Vec<usize> = done.iter().filter(|t| t.0 == queue).map(|t| t.1).collect();
                assert_eq!(own, [0, 1, 2]);
            }
        }
        let at = |done: &[(usize, usize)], task| done.iter().position(|&t| t == task);
        assert!(joined.iter().all(|done| at(done, (0, 2)) < at(done, (1, 1))));
        // All places of one task among three, and all merges of two queues of three.
        assert_eq!((joined.len(), free.len()), (4, 20));
    }
}
