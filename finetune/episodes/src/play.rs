//! The loop: observations out, turns in, many episodes in one batch.

use std::collections::HashMap;

use fsq_calibrate::foresight;
use fsq_environments::{End, Environment};
use fsq_model::{
    AdapterId, Decode, Engine, EngineEvent, EngineOptions, Request, RequestId, Sampling, SequenceId, TokenId,
};

use crate::{Episode, EpisodeError, Format, GridAnswers, Interrupted, PlayedStep, Protocol};

/// Tokens of one forward pass while prompts are read in.
const BATCH_TOKENS: usize = 1024;

/// How to play.
#[derive(Clone, Copy, Debug)]
pub struct PlayOptions {
    /// What the policy writes.
    pub format: Format,
    /// 0 is greedy.
    pub temperature: f32,
    /// Of the whole call; each episode and step has a stream of its own.
    pub seed: u64,
    /// A turn that is longer is malformed.
    pub turn_tokens_max: usize,
    /// Episodes in the batch.
    pub batch: usize,
    /// The adapter to play under.
    pub adapter: Option<AdapterId>,
}

/// An episode that is being played.
struct Live<S> {
    index: usize,
    sequence: SequenceId,
    state: S,
    episode: Episode,
    states: Vec<S>,
    turn: PlayedStep,
}

/// Plays one episode of each task, in the order of the tasks.
///
/// A malformed or illegal step ends its episode without success.
///
/// # Errors
/// When the runtime or the template refuses, or the environment cannot go on; what was finished is then in the error.
pub fn play<E: Environment, D: Decode>(
    world: &E,
    tasks: &[E::Task],
    decoder: &mut D,
    protocol: &Protocol<'_>,
    options: &PlayOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Episode>, EpisodeError> {
    play_from(world, tasks, &[], decoder, protocol, options, progress)
}

/// Plays as [`play`] does a policy that is made to begin its turns as given: `openings[task][step]` are the first
/// tokens of a turn, behind which it goes on by itself. Turns without an opening are its own.
///
/// # Errors
/// As [`play`].
pub fn play_from<E: Environment, D: Decode>(
    world: &E,
    tasks: &[E::Task],
    openings: &[Vec<Vec<TokenId>>],
    decoder: &mut D,
    protocol: &Protocol<'_>,
    options: &PlayOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Episode>, EpisodeError> {
    let answers = GridAnswers::new(protocol.tokenizer);
    // Reading what a policy states forks its sequence, so half of the room is kept free.
    let running_max = options.batch.min(decoder.max_sequences() / 2).max(1);
    // Nobody waits for a token here, so passes are as long as they like.
    let (batch_tokens_max, prompt_tokens_max) = (BATCH_TOKENS, BATCH_TOKENS);
    let engine =
        Engine::new(decoder, EngineOptions { batch_tokens_max, prompt_tokens_max, ..EngineOptions::new(running_max) });
    let done = tasks.iter().map(|_| None).collect();
    let mut player =
        Player { world, tasks, openings, engine, protocol, options, answers, live: HashMap::new(), next: 0, done };
    match player.run(running_max, progress) {
        Ok(()) => Ok(player.done.into_iter().flatten().collect()),
        Err(error) => Err(player.interrupted(error)),
    }
}

struct Player<'a, E: Environment, D: Decode> {
    world: &'a E,
    tasks: &'a [E::Task],
    openings: &'a [Vec<Vec<TokenId>>],
    engine: Engine<&'a mut D>,
    protocol: &'a Protocol<'a>,
    options: &'a PlayOptions,
    answers: GridAnswers,
    live: HashMap<RequestId, Live<E::State>>,
    next: usize,
    /// By task.
    done: Vec<Option<Episode>>,
}

impl<E: Environment, D: Decode> Player<'_, E, D> {
    fn run(&mut self, running_max: usize, progress: &mut dyn FnMut(usize)) -> Result<(), EpisodeError> {
        self.check()?;
        loop {
            while self.live.len() < running_max && self.next < self.tasks.len() {
                self.begin()?;
            }
            if self.live.is_empty() {
                return Ok(());
            }
            self.step()?;
            progress(self.done.iter().flatten().count());
        }
    }

    /// Whether the world can still be asked.
    fn check(&self) -> Result<(), EpisodeError> {
        let interrupted = |error| EpisodeError::Environment(Box::new(Interrupted { error, finished: Vec::new() }));
        self.world.check().map_err(interrupted)
    }

    /// Keeps what was finished where the environment is at fault.
    fn interrupted(self, error: EpisodeError) -> EpisodeError {
        match error {
            EpisodeError::Environment(mut it) => {
                it.finished = self.done.into_iter().flatten().collect();
                EpisodeError::Environment(it)
            }
            other => other,
        }
    }

    /// Starts the next task's episode.
    fn begin(&mut self) -> Result<(), EpisodeError> {
        let (index, task) = (self.next, &self.tasks[self.next]);
        self.next += 1;
        let state = self.world.start(task);
        let observation = self.world.observe(task, &state);
        let tokens = self.protocol.first(&observation)?;
        let episode = Episode {
            task_id: self.world.task_id(task),
            difficulty: self.world.difficulty(task),
            tokens,
            steps: Vec::new(),
            last_observation: String::new(),
            found_all: false,
            success: false,
        };
        let sequence = self.engine.decoder().open_sequence();
        let turn = fresh_turn(observation, episode.tokens.len());
        self.submit(Live { index, sequence, states: vec![state.clone()], state, episode, turn })
    }

    fn submit(&mut self, mut live: Live<E::State>) -> Result<(), EpisodeError> {
        if let Some(opening) = self.openings.get(live.index).and_then(|it| it.get(live.episode.steps.len())) {
            live.episode.tokens.extend(opening);
        }
        // Every episode and turn draws from a stream of its own, so the batch's make-up changes nothing.
        let stream = (live.index as u64) << 8 | live.episode.steps.len() as u64;
        let seed = self.options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stream.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let sampling = Sampling::temperature(self.options.temperature, seed);
        let mut request = Request::new(live.episode.tokens.clone(), self.options.turn_tokens_max, sampling);
        request.stop = self.protocol.tokenizer.ends().to_vec();
        request.adapter = self.options.adapter;
        request.sequence = Some(live.sequence);
        let id = self.engine.submit(request)?;
        self.live.insert(id, live);
        Ok(())
    }

    /// One forward pass.
    fn step(&mut self) -> Result<(), EpisodeError> {
        let mut turned = Vec::new();
        for event in self.engine.step()? {
            match event {
                EngineEvent::Token { request, token, logprob, finish, .. } => {
                    let Some(live) = self.live.get_mut(&request) else { continue };
                    live.episode.tokens.push(token);
                    live.turn.log_probabilities.push(logprob);
                    if finish.is_some() {
                        turned.extend(self.live.remove(&request));
                    }
                }
                EngineEvent::Failed { error, .. } => return Err(error.into()),
            }
        }
        // In task order, so that nothing depends on the order of a hash map.
        turned.sort_by_key(|it| it.index);
        for live in &mut turned {
            self.parse(live);
        }
        self.read_stated(&mut turned)?;
        for live in turned {
            self.act(live)?;
        }
        Ok(())
    }

    /// Cuts the finished turn out of the tokens and reads it.
    fn parse(&self, live: &mut Live<E::State>) {
        let (turn, tokens) = (&mut live.turn, &live.episode.tokens);
        turn.tokens.end = tokens.len();
        let written = &tokens[turn.tokens.clone()];
        let ended = written.last().is_some_and(|it| self.protocol.tokenizer.is_end(*it));
        let said = if ended { &written[..written.len() - 1] } else { written };
        turn.text = self.protocol.tokenizer.decode(said);
        let read = match self.options.format {
            _ if !ended => Err(format!("malformed: no end within {} tokens", self.options.turn_tokens_max)),
            Format::Plain => {
                let from = turn.text.find("<action>").unwrap_or(0);
                foresight::parse_plain_action(&turn.text[from..]).map_err(|it| format!("malformed: {it}"))
            }
            Format::Foresight => match foresight::parse(&turn.text) {
                Ok(read) => {
                    turn.confidence_at = self.confidence_at(tokens, turn);
                    let action = read.action.clone();
                    turn.foresight = Some(read);
                    Ok(action)
                }
                Err(error) => Err(format!("malformed: {error}")),
            },
        };
        match read {
            Ok(action) => turn.action = Some(action),
            Err(fault) => turn.fault = Some(fault),
        }
    }

    /// The first token of the confidence: the one whose text begins where the prefix ends.
    fn confidence_at(&self, tokens: &[TokenId], turn: &PlayedStep) -> Option<usize> {
        let prefix = foresight::confidence_prefix(&turn.text)?.len();
        let mut bytes = 0;
        for place in turn.tokens.clone() {
            if bytes == prefix {
                return Some(place);
            }
            bytes += self.protocol.tokenizer.token_bytes(tokens[place]).map_or(0, <[u8]>::len);
        }
        None
    }

    fn read_stated(&mut self, turned: &mut [Live<E::State>]) -> Result<(), EpisodeError> {
        let asked: Vec<(usize, usize)> =
            turned.iter().enumerate().filter_map(|(index, it)| Some((index, it.turn.confidence_at?))).collect();
        let places: Vec<(SequenceId, usize)> = asked.iter().map(|(index, at)| (turned[*index].sequence, *at)).collect();
        if places.is_empty() {
            return Ok(());
        }
        let read = self.answers.read(*self.engine.decoder(), &places, self.options.adapter)?;
        for ((index, _), distribution) in asked.into_iter().zip(read) {
            turned[index].turn.distribution = distribution;
        }
        Ok(())
    }

    /// Takes the turn's action and asks for the next turn, or ends the episode.
    fn act(&mut self, mut live: Live<E::State>) -> Result<(), EpisodeError> {
        let task = &self.tasks[live.index];
        let stepped = match &live.turn.action {
            Some(action) => self.world.step(task, &live.state, action).map_err(|it| it.to_string()),
            None => Err(live.turn.fault.clone().unwrap_or_default()),
        };
        // What a world says that cannot go on is no outcome.
        self.check()?;
        let mut turn = std::mem::replace(&mut live.turn, fresh_turn(String::new(), 0));
        match stepped {
            Ok(state) => {
                live.state = state.clone();
                live.states.push(state);
                live.episode.steps.push(turn);
            }
            Err(fault) => {
                turn.fault = Some(fault);
                turn.action = None;
                live.episode.steps.push(turn);
                self.finish(live);
                return Ok(());
            }
        }
        let observation = self.world.observe(task, &live.state);
        if self.world.end(task, &live.state).is_some() || live.episode.steps.len() >= self.world.steps_max() {
            live.episode.last_observation = observation;
            self.finish(live);
            return Ok(());
        }
        let next = self.protocol.next(&observation)?;
        let (needed, room) = (live.episode.tokens.len() + next.len() + 1, self.engine.decoder().context_tokens());
        if needed > room {
            // The policy cannot read on, which is nobody's fault but the conversation's length.
            let last = live.episode.steps.last_mut();
            last.into_iter().for_each(|it| it.fault = Some(format!("no room: {needed} tokens in a context of {room}")));
            live.episode.last_observation = observation;
            self.finish(live);
            return Ok(());
        }
        live.episode.tokens.extend(next);
        live.turn = fresh_turn(observation, live.episode.tokens.len());
        self.submit(live)
    }

    fn finish(&mut self, mut live: Live<E::State>) {
        self.engine.decoder().close(live.sequence);
        let task = &self.tasks[live.index];
        live.episode.found_all = self.world.has_found_all(task, &live.state);
        live.episode.success = self.world.end(task, &live.state) == Some(End::Success);
        let actions: Vec<String> = live.episode.steps.iter().filter_map(|it| it.action.clone()).collect();
        let path: Vec<(String, E::State)> = actions.into_iter().zip(live.states.iter().skip(1).cloned()).collect();
        for (index, step) in live.episode.steps.iter_mut().enumerate() {
            let Some(imagined) = step.foresight.as_ref().map(|it| &it.imaginary) else { continue };
            let future = path.get(index..).unwrap_or_default();
            let truth = self.world.true_lines(task, &live.states[index], future, imagined);
            step.fidelity = truth
                .iter()
                .enumerate()
                .map(|(h, line)| {
                    let said = imagined.get(h).map_or("", |it| self.world.state_of_line(it));
                    Some(said == self.world.state_of_line(line))
                })
                .collect();
        }
        self.done[live.index] = Some(live.episode);
    }
}

fn fresh_turn(observation: String, start: usize) -> PlayedStep {
    PlayedStep {
        observation,
        text: String::new(),
        tokens: start..start,
        log_probabilities: Vec::new(),
        confidence_at: None,
        foresight: None,
        distribution: None,
        action: None,
        fault: None,
        fidelity: Vec::new(),
    }
}
