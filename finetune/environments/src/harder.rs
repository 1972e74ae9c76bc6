//! Tasks harder than those that training draws: for policies that meet more than they learnt.
//!
//! States, moves, verifier and texts are the world's own; only the tasks differ, so whatever goes wrong is the
//! policy's.

use rand_chacha::ChaCha8Rng;

use crate::{End, Environment, IllegalAction, ProcessError, Skill, Split};

/// A world that has harder tasks.
pub trait HarderTasks: Environment {
    /// Most steps that an episode of a harder task can have.
    const HARDER_STEPS_MAX: usize;

    /// The same for this world.
    fn harder_steps_max(&self) -> usize {
        Self::HARDER_STEPS_MAX
    }
    /// `count` harder tasks of a split; no policy is trained on any of them. The same arguments give the same tasks.
    fn harder_tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Self::Task>;
}

/// The world with its harder tasks in the place of its tasks.
#[derive(Clone, Copy, Debug)]
pub struct Harder<'w, E>(pub &'w E);

impl<E: HarderTasks> Environment for Harder<'_, E> {
    type Task = E::Task;
    type State = E::State;

    const NAME: &'static str = E::NAME;
    const HORIZON: usize = E::HORIZON;
    const STEPS_MAX: usize = E::HARDER_STEPS_MAX;
    const LOGGING: &'static [(Skill, f64)] = E::LOGGING;

    fn name(&self) -> &str {
        self.0.name()
    }

    fn horizon(&self) -> usize {
        self.0.horizon()
    }

    fn steps_max(&self) -> usize {
        self.0.harder_steps_max()
    }

    fn check(&self) -> Result<(), ProcessError> {
        self.0.check()
    }

    fn tasks(&self, split: Split, seed: u64, count: usize) -> Vec<E::Task> {
        self.0.harder_tasks(split, seed, count)
    }

    fn task_id(&self, task: &E::Task) -> u64 {
        self.0.task_id(task)
    }

    fn start(&self, task: &E::Task) -> E::State {
        self.0.start(task)
    }

    fn observe(&self, task: &E::Task, state: &E::State) -> String {
        self.0.observe(task, state)
    }

    fn legal_actions(&self, task: &E::Task, state: &E::State) -> Vec<String> {
        self.0.legal_actions(task, state)
    }

    fn step(&self, task: &E::Task, state: &E::State, action: &str) -> Result<E::State, IllegalAction> {
        self.0.step(task, state, action)
    }

    fn end(&self, task: &E::Task, state: &E::State) -> Option<End> {
        self.0.end(task, state)
    }

    fn logged_action(&self, task: &E::Task, state: &E::State, skill: Skill, rng: &mut ChaCha8Rng) -> String {
        self.0.logged_action(task, state, skill, rng)
    }

    fn exact_success(&self, task: &E::Task, state: &E::State, action: &str, skill: Skill) -> Option<f64> {
        self.0.exact_success(task, state, action, skill)
    }

    fn expected_future(&self, task: &E::Task, state: &E::State, action: &str) -> Option<Vec<(String, E::State)>> {
        self.0.expected_future(task, state, action)
    }

    fn lines(&self, task: &E::Task, now: &E::State, future: &[(String, E::State)]) -> Vec<String> {
        self.0.lines(task, now, future)
    }

    fn true_lines(
        &self,
        task: &E::Task,
        now: &E::State,
        future: &[(String, E::State)],
        imagined: &[String],
    ) -> Vec<String> {
        self.0.true_lines(task, now, future, imagined)
    }

    fn summary(&self, task: &E::Task, now: &E::State, future: &[(String, E::State)]) -> (String, String) {
        self.0.summary(task, now, future)
    }

    fn state_of_line<'a>(&self, line: &'a str) -> &'a str {
        self.0.state_of_line(line)
    }

    fn hidden_names(&self, task: &E::Task, state: &E::State) -> Vec<String> {
        self.0.hidden_names(task, state)
    }

    fn has_found_all(&self, task: &E::Task, state: &E::State) -> bool {
        self.0.has_found_all(task, state)
    }

    fn difficulty(&self, task: &E::Task) -> String {
        self.0.difficulty(task)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand_chacha::rand_core::SeedableRng;

    use super::*;
    use crate::{Countdown, DagMath, DocHop, SlipGrid, play_logged, succeeded};

    fn ids<E: Environment>(world: &E, split: Split, count: usize) -> HashSet<u64> {
        world.tasks(split, 3, count).iter().map(|it| world.task_id(it)).collect()
    }

    fn are_new_and_can_be_solved<E: HarderTasks>(world: &E) {
        let harder = Harder(world);
        let [calibration, test] = [Split::Calibration, Split::Test].map(|it| ids(&harder, it, 600));
        assert!(test.len() >= 590 && calibration.is_disjoint(&test), "{}: {}", E::NAME, test.len());
        for split in [Split::Train, Split::Calibration, Split::Test] {
            assert!(test.is_disjoint(&ids(world, split, 2_000)), "{}", E::NAME);
        }
        let tasks = harder.tasks(Split::Test, 3, 300);
        let again = harder.tasks(Split::Test, 3, 300);
        assert!(tasks.iter().zip(&again).all(|(a, b)| world.task_id(a) == world.task_id(b)));
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let solved = tasks.iter().filter(|task| {
            let path = play_logged(&harder, task, &harder.start(task), Skill { epsilon: 0.0 }, &mut rng);
            path.len() <= E::HARDER_STEPS_MAX && succeeded(&harder, task, &path)
        });
        let n_solved = solved.count();
        assert!(n_solved > 90, "{}: {n_solved} of 300", E::NAME);
    }

    #[test]
    fn harder_tasks_are_new_and_can_be_solved() {
        are_new_and_can_be_solved(&Countdown);
        are_new_and_can_be_solved(&DocHop);
        are_new_and_can_be_solved(&DagMath);
        are_new_and_can_be_solved(&SlipGrid);
    }

    #[test]
    fn harder_tasks_are_harder() {
        let larger = Harder(&Countdown).tasks(Split::Test, 1, 200);
        assert!(larger.iter().all(|it| it.numbers.iter().any(|it| *it > 12)));
        assert!(DocHop.harder_tasks(Split::Test, 1, 50).iter().all(|it| DocHop.difficulty(it) == "3 hops"));
    }
}
