//! The door for a user's own environment: a program that is asked in JSON lines and answers in JSON lines.
//!
//! Every request carries the state that it is about, so the program needs no memory: episodes can be played side by
//! side, and a program that dies is started again and asked again. A fault stays: from then on the world answers
//! nothing true, and whoever plays in it asks [`Environment::check`].

mod answer;
mod child;
mod error;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use answer::{Hello, PROTOCOL};
pub use error::{ProcessError, ProcessFault};

use crate::countdown::mixed;
use crate::{End, Environment, HarderTasks, IllegalAction, Skill, Split, only_text};
use answer::Answer;
use child::Child;
use error::shortened;

/// How a program is run.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessOptions {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Where it runs.
    pub folder: PathBuf,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// How long it may take to start and say what it is.
    pub start_timeout: Duration,
    /// How often it may be started again in all.
    pub restarts: u32,
    /// Longest line that it may write.
    pub line_bytes_max: usize,
}

/// A user's environment.
pub struct ProcessWorld {
    options: ProcessOptions,
    hello: Hello,
    connection: Mutex<Connection>,
}

struct Connection {
    child: Option<Child>,
    n_restarts: u32,
    next_id: u64,
    fault: Option<ProcessError>,
    /// The state whose actions were last asked for, and what they were.
    listed: Option<(Value, Vec<String>)>,
}

/// One episode's beginning.
#[derive(Clone, Debug)]
pub struct Task {
    seed: u64,
    difficulty: String,
    start: Seen,
}

/// A state as the program told of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// The program's own description, which is sent back to it.
    pub state: Value,
    /// What the policy is shown.
    pub text: String,
    /// What the policy is to imagine of it.
    pub rollout: String,
    /// Names that a rollout must not tell yet.
    pub hidden: Vec<String>,
    /// What `verify` says of it.
    pub end: Option<End>,
}

impl ProcessWorld {
    /// Starts a program and hears what it is.
    ///
    /// # Errors
    /// When it does not start, or does not say so in time and form.
    pub fn start(options: ProcessOptions) -> Result<Self, ProcessError> {
        let command = options.command.join(" ");
        let started = greet(&options);
        let (child, hello) = started.map_err(|fault| ProcessError {
            environment: shortened(&command),
            request: "hello".into(),
            fault: Box::new(fault),
        })?;
        let connection = Connection { child: Some(child), n_restarts: 0, next_id: 1, fault: None, listed: None };
        Ok(Self { options, hello, connection: Mutex::new(connection) })
    }

    /// What the program says of itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// How often the program was started again.
    #[must_use]
    pub fn n_restarts(&self) -> u32 {
        self.lock().n_restarts
    }

    fn offers(&self, request: &str) -> bool {
        self.hello.offers.iter().any(|it| it == request)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, and reads the answer; a fault is kept.
    fn ask<T>(
        &self,
        request: &str,
        mut body: Value,
        shown: &str,
        read: impl Fn(&Answer) -> Result<T, ProcessFault>,
    ) -> Result<T, ProcessError> {
        let mut connection = self.lock();
        if let Some(fault) = &connection.fault {
            return Err(fault.clone());
        }
        body["ask"] = request.into();
        loop {
            let fault = match connection.exchange(&self.options, &self.hello, &mut body, &read) {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            if let Some(child) = connection.child.take() {
                child.kill();
            }
            if fault.may_pass() && connection.n_restarts < self.options.restarts {
                connection.n_restarts += 1;
                continue;
            }
            let fault = if fault.may_pass() && self.options.restarts > 0 {
                ProcessFault::Restarts { limit: self.options.restarts, last: Box::new(fault) }
            } else {
                fault
            };
            let error = self.error(request, shown, fault);
            connection.fault = Some(error.clone());
            return Err(error);
        }
    }

    fn error(&self, request: &str, shown: &str, fault: ProcessFault) -> ProcessError {
        let request = shortened(format!("{request} {shown}").trim_end());
        ProcessError { environment: self.hello.name.clone(), request, fault: Box::new(fault) }
    }

    /// Keeps a fault that only shows when answers are compared.
    fn keep(&self, request: &str, shown: &str, fault: ProcessFault) {
        let error = self.error(request, shown, fault);
        self.lock().fault.get_or_insert(error);
    }

    fn verified(&self, mut seen: Seen) -> Result<Seen, ProcessError> {
        seen.end = self.ask("verify", json!({ "state": seen.state }), "", Answer::end)?;
        Ok(seen)
    }

    fn reset(&self, seed: u64, split: Split, is_harder: bool) -> Result<Task, ProcessError> {
        let difficulty = if is_harder { "harder" } else { "trained" };
        let body = json!({ "seed": seed, "split": split, "difficulty": difficulty });
        let read = |it: &Answer| Ok((it.seen()?, it.difficulty()?));
        let (seen, difficulty) = self.ask("reset", body, &format!("seed {seed}"), read)?;
        Ok(Task { seed, difficulty, start: self.verified(seen)? })
    }

    fn drawn(&self, split: Split, seed: u64, count: usize, is_harder: bool) -> Vec<Task> {
        if is_harder && !self.offers("harder") {
            let (field, expected) = ("offers".into(), "`harder` among them to play harder tasks".into());
            let found = format!("{:?}", self.hello.offers);
            self.keep("hello", "", ProcessFault::Field { field, expected, found });
            return Vec::new();
        }
        let salt = mixed(mixed(seed) ^ u64::from(is_harder));
        // No number is in two splits, and every language can hold it.
        let number = |index: usize| (mixed(salt ^ (index as u64)) >> 12) / 3 * 3 + split as u64;
        (0..count).map_while(|it| self.reset(number(it), split, is_harder).ok()).collect()
    }

    fn taken(&self, state: &Seen, action: &str) -> Result<Result<Seen, String>, ProcessError> {
        let body = json!({ "state": state.state, "action": action });
        let read = |it: &Answer| match it.illegal()? {
            Some(reason) => Ok(Err(reason)),
            None => it.seen().map(Ok),
        };
        Ok(match self.ask("step", body, action, read)? {
            Ok(seen) => Ok(self.verified(seen)?),
            Err(reason) => {
                self.check_refusal(state, action, &reason)?;
                Err(reason)
            }
        })
    }

    /// An action that is refused must not be listed, then or now.
    fn check_refusal(&self, state: &Seen, action: &str, reason: &str) -> Result<(), ProcessError> {
        let before = self.lock().listed.clone().filter(|it| it.0 == state.state);
        let now = if state.end.is_some() { Vec::new() } else { self.listed(state)? };
        let was_listed = before.is_some_and(|it| it.1.iter().any(|it| it == action));
        if was_listed || now.iter().any(|it| it == action) {
            self.keep("step", action, ProcessFault::ListedButRefused { reason: reason.into() });
        }
        self.check()
    }

    fn listed(&self, state: &Seen) -> Result<Vec<String>, ProcessError> {
        let actions = self.ask("legal", json!({ "state": state.state }), "", Answer::actions)?;
        self.lock().listed = Some((state.state.clone(), actions.clone()));
        Ok(actions)
    }

    /// A skilled choice where the program offers none: an action that succeeds at once, else one that does not fail.
    fn careful(&self, task: &Task, state: &Seen, legal: &[String], rng: &mut ChaCha8Rng) -> Option<String> {
        let mut open = Vec::new();
        for action in legal {
            match self.step(task, state, action).ok()?.end {
                Some(End::Success) => return Some(action.clone()),
                Some(End::Failure) => {}
                None => open.push(action),
            }
        }
        open.choose(rng).map(|it| (*it).clone())
    }
}

impl Connection {
    fn exchange<T>(
        &mut self,
        options: &ProcessOptions,
        hello: &Hello,
        body: &mut Value,
        read: impl Fn(&Answer) -> Result<T, ProcessFault>,
    ) -> Result<T, ProcessFault> {
        let child = match &mut self.child {
            Some(child) => child,
            None => {
                let (child, again) = greet(options)?;
                if again != *hello {
                    return Err(ProcessFault::Changed { found: "another `hello` after a restart".into() });
                }
                self.child.insert(child)
            }
        };
        let id = self.next_id;
        self.next_id += 1;
        body["id"] = id.into();
        let line = child.ask(body.to_string(), options.timeout)?;
        read(&Answer::read(&line, id)?)
    }
}

/// Starts the program and asks what it is.
fn greet(options: &ProcessOptions) -> Result<(Child, Hello), ProcessFault> {
    let mut child = Child::start(&options.command, &options.folder, options.line_bytes_max)?;
    let hello = json!({ "id": 0, "ask": "hello", "protocol": PROTOCOL });
    let answer = child.ask(hello.to_string(), options.start_timeout);
    match answer.and_then(|line| Answer::read(&line, 0)?.hello()) {
        Ok(hello) => Ok((child, hello)),
        Err(fault) => {
            child.kill();
            Err(fault)
        }
    }
}

impl ProcessOptions {
    /// The defaults for a command that runs in a folder.
    #[must_use]
    pub fn new(command: Vec<String>, folder: &Path) -> Self {
        Self {
            command,
            folder: folder.to_path_buf(),
            timeout: Duration::from_secs(10),
            start_timeout: Duration::from_secs(30),
            restarts: 2,
            line_bytes_max: 1 << 20,
        }
    }
}

impl Environment for ProcessWorld {
    type Task = Task;
    type State = Seen;

    const NAME: &'static str = "own";
    const HORIZON: usize = 3;
    const STEPS_MAX: usize = 1000;
    const LOGGING: &'static [(Skill, f64)] =
        &[(Skill { epsilon: 0.05 }, 0.35), (Skill { epsilon: 0.3 }, 0.30), (Skill { epsilon: 1.0 }, 0.35)];

    fn name(&self) -> &str {
        &self.hello.name
    }

    fn horizon(&self) -> usize {
        self.hello.horizon
    }

    fn steps_max(&self) -> usize {
        self.hello.steps_max
    }

    fn check(&self) -> Result<(), ProcessError> {
        self.lock().fault.clone().map_or(Ok(()), Err)
    }

    fn tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Task> {
        self.drawn(split, seed, count, false)
    }

    fn task_id(&self, task: &Task) -> u64 {
        task.seed
    }

    fn start(&self, task: &Task) -> Seen {
        task.start.clone()
    }

    fn observe(&self, _: &Task, state: &Seen) -> String {
        only_text(&state.text)
    }

    fn legal_actions(&self, _: &Task, state: &Seen) -> Vec<String> {
        if state.end.is_some() {
            return Vec::new();
        }
        self.listed(state).unwrap_or_default()
    }

    fn step(&self, _: &Task, state: &Seen, action: &str) -> Result<Seen, IllegalAction> {
        let illegal = |reason: String| IllegalAction { action: action.into(), reason };
        match self.taken(state, action) {
            Ok(taken) => taken.map_err(illegal),
            Err(error) => Err(illegal(error.to_string())),
        }
    }

    fn end(&self, _: &Task, state: &Seen) -> Option<End> {
        state.end
    }

    fn logged_action(&self, task: &Task, state: &Seen, skill: Skill, rng: &mut ChaCha8Rng) -> String {
        if self.offers("act") {
            let seed = rng.random::<u64>() >> 12;
            let body = json!({ "state": state.state, "epsilon": skill.epsilon, "seed": seed });
            return self.ask("act", body, "", Answer::action).unwrap_or_default();
        }
        let legal = self.legal_actions(task, state);
        let blunders = rng.random_bool(skill.epsilon);
        let chosen = if blunders { None } else { self.careful(task, state, &legal, rng) };
        chosen.or_else(|| legal.choose(rng).cloned()).unwrap_or_default()
    }

    fn lines(&self, _: &Task, _: &Seen, future: &[(String, Seen)]) -> Vec<String> {
        let line = |(action, state): &(String, Seen)| format!("{action} sees {}", state.rollout);
        future.iter().take(self.horizon()).map(line).collect()
    }

    fn summary(&self, _: &Task, _: &Seen, future: &[(String, Seen)]) -> (String, String) {
        let next = future.first().map_or("nothing", |(action, _)| action.as_str());
        let analysis = match future.last().and_then(|(_, state)| state.end) {
            Some(End::Success) => "ends in success",
            Some(End::Failure) => "ends in failure",
            None => "goes on",
        };
        (format!("next {next}"), analysis.into())
    }

    fn state_of_line<'a>(&self, line: &'a str) -> &'a str {
        line.split_once(" sees ").map_or("", |(_, state)| state)
    }

    fn hidden_names(&self, _: &Task, state: &Seen) -> Vec<String> {
        state.hidden.clone()
    }

    fn difficulty(&self, task: &Task) -> String {
        task.difficulty.clone()
    }
}

impl HarderTasks for ProcessWorld {
    const HARDER_STEPS_MAX: usize = Self::STEPS_MAX;

    fn harder_steps_max(&self) -> usize {
        self.hello.steps_max
    }

    fn harder_tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Task> {
        self.drawn(split, seed, count, true)
    }
}
