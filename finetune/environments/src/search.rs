//! Questions over a user's own folder of texts, which only answers searches: the world that DocHop is a model of.
//!
//! Texts are cut into passages behind the same BM25 index. An answer is right if it equals one of the question's, case,
//! punctuation and articles apart. Whether a search will find an answer, and what is left, is what a rollout imagines.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use bm25::Tokenizer;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::countdown::mixed;
use crate::index::Index;
use crate::{End, Environment, HarderTasks, IllegalAction, Skill, Split, only_text};

/// Largest text file, and largest file of questions.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Longest search and answer, in characters.
const ACTION_CHARACTERS_MAX: usize = 200;
/// Of ten questions, those for judging and those for recalibration; the others train.
const TEST_TENTHS: u64 = 3;
const CALIBRATION_TENTHS: u64 = 1;
/// Words that say nothing of what is asked.
const COMMON: [&str; 32] = [
    "a", "an", "the", "of", "in", "on", "at", "to", "for", "by", "with", "and", "or", "is", "are", "was", "were", "be",
    "did", "do", "does", "what", "which", "who", "whom", "whose", "when", "where", "why", "how", "that", "this",
];

/// What is searched and asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchOptions {
    /// Texts: every `.txt` and `.md` file in it and below.
    pub folder: PathBuf,
    /// JSON lines of `question` and `answers`.
    pub questions: PathBuf,
    /// Words of a passage, at most.
    pub passage_words: usize,
    /// Passages that a search returns.
    pub results: usize,
    /// Searches of an episode.
    pub calls: u8,
}

/// Why texts or questions cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// The system refused.
    #[error("{}: {found}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        found: String,
    },
    /// A file cannot be used.
    #[error("{}: expected {expected}, found {found}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What can be used.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A question cannot be used.
    #[error("{}:{line}: field `{field}`: expected {expected}, found {found}", path.display())]
    Question {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The field; empty for the line as a whole.
        field: &'static str,
        /// What can be used.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// A folder's passages, their index, and the questions by split.
pub struct SearchWorld {
    passages: Vec<String>,
    /// Each passage's words in the form in which answers are compared, with a blank at both ends.
    compared: Vec<String>,
    index: Index<Words>,
    questions: Vec<Question>,
    by_split: BTreeMap<u8, Vec<usize>>,
    results: usize,
    calls: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Question {
    question: String,
    answers: Vec<String>,
}

/// A question, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    question: usize,
}

/// What was found, shown, spent and answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Whether a passage that was shown holds an answer.
    pub found: bool,
    /// Searches left.
    pub calls_left: u8,
    /// Numbers of the passages last shown.
    pub shown: Vec<usize>,
    /// What was answered.
    pub answer: Option<String>,
}

/// Letters and digits in lower case, whatever stands between them.
#[derive(Default)]
struct Words;

impl Tokenizer for Words {
    fn tokenize(&self, input_text: &str) -> Vec<String> {
        words(input_text)
    }
}

fn words(text: &str) -> Vec<String> {
    let pieces = text.split(|it: char| !it.is_alphanumeric()).filter(|it| !it.is_empty());
    pieces.map(str::to_lowercase).collect()
}

/// A text as answers are compared: words in lower case without articles, a blank at both ends.
fn compared(text: &str) -> String {
    let kept = words(text).into_iter().filter(|it| !matches!(it.as_str(), "a" | "an" | "the"));
    format!(" {} ", kept.collect::<Vec<_>>().join(" "))
}

impl SearchWorld {
    /// Reads texts and questions.
    ///
    /// # Errors
    /// The file, line and field that cannot be used.
    pub fn open(options: &SearchOptions) -> Result<Self, SearchError> {
        let mut files = Vec::new();
        list_texts(&options.folder, &mut files)?;
        files.sort();
        let mut passages = Vec::new();
        for path in &files {
            passages.append(&mut cut(&read(path)?, options.passage_words));
        }
        if passages.is_empty() {
            let (path, expected) = (options.folder.clone(), "`.txt` or `.md` files with words".into());
            return Err(SearchError::File { path, expected, found: format!("{} files without any", files.len()) });
        }
        let questions = read_questions(&options.questions)?;
        let mut by_split: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
        for (index, it) in questions.iter().enumerate() {
            by_split.entry(split_of(it) as u8).or_default().push(index);
        }
        let n_words: usize = passages.iter().map(|it| words(it).len()).sum();
        #[expect(clippy::cast_precision_loss, reason = "a mean length")]
        let words_mean = n_words as f32 / passages.len() as f32;
        let index = Index::new(passages.iter().map(String::as_str), words_mean);
        let compared = passages.iter().map(|it| compared(it)).collect();
        Ok(Self { passages, compared, index, questions, by_split, results: options.results, calls: options.calls })
    }

    /// How many passages and questions there are.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.passages.len(), self.questions.len())
    }

    fn question(&self, task: Task) -> &Question {
        &self.questions[task.question]
    }

    fn holds_answer(&self, task: Task, passage: usize) -> bool {
        self.question(task).answers.iter().any(|it| self.compared[passage].contains(&compared(it)))
    }

    fn is_right(&self, task: Task, answer: &str) -> bool {
        self.question(task).answers.iter().any(|it| compared(it) == compared(answer))
    }

    /// The words of a question that say what it is about.
    fn telling_words(&self, task: Task) -> Vec<String> {
        let all = words(&self.question(task).question);
        let telling: Vec<String> = all.iter().filter(|it| !COMMON.contains(&it.as_str())).cloned().collect();
        if telling.is_empty() { all } else { telling }
    }

    /// The first answer that a shown passage holds.
    fn answer_in_sight(&self, task: Task, state: &State) -> Option<&str> {
        let answers = self.question(task).answers.iter();
        let seen = |it: &&String| state.shown.iter().any(|passage| self.compared[*passage].contains(&compared(it)));
        answers.into_iter().find(seen).map(String::as_str)
    }

    /// The skilled choice: what was found, else a search with the question's own words, fewer of them each time.
    fn best_action(&self, task: Task, state: &State) -> String {
        if let Some(answer) = self.answer_in_sight(task, state) {
            return format!("answer {answer}");
        }
        if state.calls_left == 0 {
            return "answer none".into();
        }
        let words = self.telling_words(task);
        let dropped = usize::from(self.calls - state.calls_left).min(words.len() - 1);
        search_for(&words[dropped..])
    }

    /// A slip: a search with few words of what was read or asked, or an answer of them.
    fn slip(&self, task: Task, state: &State, rng: &mut ChaCha8Rng) -> String {
        let mut words = self.telling_words(task);
        words.extend(state.shown.iter().flat_map(|it| self::words(&self.passages[*it])));
        let count = rng.random_range(1..=3);
        let picked: Vec<String> = (0..count).filter_map(|_| words.choose(rng).cloned()).collect();
        if state.calls_left > 0 && rng.random_bool(0.7) {
            search_for(&picked)
        } else {
            shortened(format!("answer {}", picked.join(" ")))
        }
    }
}

fn search_for(words: &[String]) -> String {
    shortened(format!("search {}", words.join(" ")))
}

fn shortened(action: String) -> String {
    action.chars().take(ACTION_CHARACTERS_MAX).collect::<String>().trim_end().to_string()
}

fn io(path: &Path, error: &std::io::Error) -> SearchError {
    SearchError::Io { path: path.to_path_buf(), found: error.to_string() }
}

/// Text files in a folder and below; links are not followed, so there is an end to it.
fn list_texts(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), SearchError> {
    for entry in std::fs::read_dir(folder).map_err(|it| io(folder, &it))? {
        let entry = entry.map_err(|it| io(folder, &it))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(|it| io(folder, &it))?);
        let is_text = path.extension().is_some_and(|it| it == "txt" || it == "md");
        if kind.is_dir() {
            list_texts(&path, files)?;
        } else if kind.is_file() && is_text {
            files.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, SearchError> {
    let bytes = std::fs::metadata(path).map_err(|it| io(path, &it))?.len();
    if bytes > FILE_BYTES_MAX {
        let (expected, found) = (format!("at most {FILE_BYTES_MAX} bytes"), bytes.to_string());
        return Err(SearchError::File { path: path.to_path_buf(), expected, found });
    }
    let bytes = std::fs::read(path).map_err(|it| io(path, &it))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(at).copied().unwrap_or_default();
        let found = format!("byte 0x{byte:02X} at byte {at}");
        SearchError::File { path: path.to_path_buf(), expected: "UTF-8".into(), found }
    })
}

/// Paragraphs, cut further where they are long.
fn cut(text: &str, words_max: usize) -> Vec<String> {
    let mut passages = Vec::new();
    let mut paragraph: Vec<&str> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            passages.extend(paragraph.chunks(words_max).map(|it| it.join(" ")));
            paragraph.clear();
        } else {
            paragraph.extend(line.split_whitespace());
        }
    }
    passages.retain(|it| it.chars().any(char::is_alphanumeric));
    passages
}

fn read_questions(path: &Path) -> Result<Vec<Question>, SearchError> {
    let text = read(path)?;
    let mut questions = Vec::new();
    let mut seen = HashSet::new();
    for (index, line) in text.lines().enumerate().filter(|(_, it)| !it.trim().is_empty()) {
        let fault = |field, expected, found: &str| SearchError::Question {
            path: path.to_path_buf(),
            line: index + 1,
            field,
            expected,
            found: found.chars().take(ACTION_CHARACTERS_MAX).collect(),
        };
        let parsed: Result<Question, _> = serde_json::from_str(line);
        let question = parsed.map_err(|it| fault("", "`question` and a list of `answers`", &it.to_string()))?;
        if words(&question.question).is_empty() {
            return Err(fault("question", "a question in words", &question.question));
        }
        let is_answer = |it: &String| !compared(it).trim().is_empty() && it.chars().count() <= ACTION_CHARACTERS_MAX;
        if question.answers.is_empty() || !question.answers.iter().all(is_answer) {
            return Err(fault("answers", "answers of words, each a line at most", &format!("{:?}", question.answers)));
        }
        // Asked twice, it would stand in one split twice, and count twice.
        if seen.insert(question.question.clone()) {
            questions.push(question);
        }
    }
    if questions.is_empty() {
        let expected = "at least one question".into();
        return Err(SearchError::File { path: path.to_path_buf(), expected, found: "none".into() });
    }
    Ok(questions)
}

fn hash(question: &Question) -> u64 {
    question.question.bytes().fold(0, |sum, it| mixed(sum ^ u64::from(it)))
}

fn split_of(question: &Question) -> Split {
    match hash(question) % 10 {
        it if it < TEST_TENTHS => Split::Test,
        it if it < TEST_TENTHS + CALIBRATION_TENTHS => Split::Calibration,
        _ => Split::Train,
    }
}

impl Environment for SearchWorld {
    type Task = Task;
    type State = State;

    const NAME: &'static str = "search";
    const HORIZON: usize = 3;
    const STEPS_MAX: usize = u8::MAX as usize + 1;
    const LOGGING: &'static [(Skill, f64)] =
        &[(Skill { epsilon: 0.05 }, 0.40), (Skill { epsilon: 0.3 }, 0.35), (Skill { epsilon: 0.7 }, 0.25)];

    fn steps_max(&self) -> usize {
        usize::from(self.calls) + 1
    }

    /// Questions without repetition as long as there are any left; none if the split has none.
    fn tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Task> {
        let Some(all) = self.by_split.get(&(split as u8)) else { return Vec::new() };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut tasks = Vec::with_capacity(count);
        while tasks.len() < count {
            let mut order = all.clone();
            order.shuffle(&mut rng);
            tasks.extend(order.into_iter().take(count - tasks.len()).map(|question| Task { question }));
        }
        tasks
    }

    fn task_id(&self, task: &Task) -> u64 {
        hash(self.question(*task))
    }

    fn start(&self, _: &Task) -> State {
        State { found: false, calls_left: self.calls, shown: Vec::new(), answer: None }
    }

    fn observe(&self, task: &Task, state: &State) -> String {
        if let Some(answer) = &state.answer {
            return format!("answer {}", if self.is_right(*task, answer) { "right" } else { "wrong" });
        }
        let calls = format!("calls {}", state.calls_left);
        if state.calls_left == self.calls {
            return format!("ask {} {calls}", only_text(&self.question(*task).question));
        }
        let shown: Vec<&str> = state.shown.iter().map(|it| self.passages[*it].as_str()).collect();
        let shown = only_text(&shown.join("\n"));
        if shown.is_empty() { format!("{calls} read nothing") } else { format!("{calls} read\n{shown}") }
    }

    /// Too many to list: some that [`Environment::step`] takes.
    fn legal_actions(&self, task: &Task, state: &State) -> Vec<String> {
        if state.answer.is_some() {
            return Vec::new();
        }
        let words = self.telling_words(*task);
        let searches = (0..words.len()).filter(|_| state.calls_left > 0).map(|it| search_for(&words[it..]));
        let answers = words.iter().map(|it| format!("answer {it}"));
        searches.chain(answers).chain(["answer none".into()]).collect()
    }

    fn step(&self, task: &Task, state: &State, action: &str) -> Result<State, IllegalAction> {
        let illegal = |reason: &str| IllegalAction { action: action.into(), reason: reason.into() };
        if state.answer.is_some() {
            return Err(illegal("the question is answered already"));
        }
        if action.chars().count() > ACTION_CHARACTERS_MAX {
            return Err(illegal("expected at most 200 characters"));
        }
        let mut next = state.clone();
        match action.split_once(' ') {
            Some(("answer", answer)) if !answer.trim().is_empty() => next.answer = Some(answer.trim().into()),
            Some(("search", words)) if !self::words(words).is_empty() => {
                if state.calls_left == 0 {
                    return Err(illegal("no searches left"));
                }
                next.calls_left -= 1;
                next.shown = self.index.search(words, self.results);
                next.found |= next.shown.iter().any(|it| self.holds_answer(*task, *it));
            }
            _ => return Err(illegal("expected `search WORDS` or `answer WORDS`")),
        }
        Ok(next)
    }

    fn end(&self, task: &Task, state: &State) -> Option<End> {
        let answer = state.answer.as_deref()?;
        Some(if self.is_right(*task, answer) { End::Success } else { End::Failure })
    }

    fn logged_action(&self, task: &Task, state: &State, skill: Skill, rng: &mut ChaCha8Rng) -> String {
        if rng.random_bool(skill.epsilon) { self.slip(*task, state, rng) } else { self.best_action(*task, state) }
    }

    fn lines(&self, task: &Task, now: &State, future: &[(String, State)]) -> Vec<String> {
        // Later words may come from passages that are not read yet: of a later search only the outcome is told.
        let known: HashSet<String> = self.known_words(*task, now);
        let mut lines = Vec::new();
        for (action, state) in future.iter().take(Self::HORIZON) {
            let is_known = words(action).iter().skip(1).all(|it| known.contains(it));
            lines.push(match (action.starts_with("search "), is_known) {
                (true, is_known) => {
                    let said = if is_known { action.as_str() } else { "search further" };
                    let outcome = if state.found { "found" } else { "missing" };
                    format!("{said} sees {outcome} calls {}", state.calls_left)
                }
                (false, _) => "tell it sees end".into(),
            });
        }
        lines
    }

    fn summary(&self, _: &Task, now: &State, future: &[(String, State)]) -> (String, String) {
        let found = future.last().map_or(now.found, |(_, state)| state.found);
        let keyword = if future.first().is_some_and(|it| it.0.starts_with("search ")) { "search" } else { "answer" };
        (keyword.into(), (if found { "the answer will be read" } else { "the answer stays open" }).into())
    }

    fn state_of_line<'a>(&self, line: &'a str) -> &'a str {
        line.split_once(" sees ").map_or("", |(_, state)| state)
    }

    fn hidden_names(&self, task: &Task, state: &State) -> Vec<String> {
        let known = self.known_words(*task, state);
        let answers = self.question(*task).answers.iter().flat_map(|it| words(it));
        answers.filter(|it| !known.contains(it)).collect()
    }

    fn has_found_all(&self, _: &Task, state: &State) -> bool {
        state.found
    }

    fn difficulty(&self, task: &Task) -> String {
        // By what the plainest search gives.
        let words = self.telling_words(*task).join(" ");
        let shown = self.index.search(&words, self.results);
        let at_once = shown.iter().any(|it| self.holds_answer(*task, *it));
        (if at_once { "found at once" } else { "hidden" }).into()
    }
}

impl SearchWorld {
    fn known_words(&self, task: Task, state: &State) -> HashSet<String> {
        let asked = words(&self.question(task).question);
        asked.into_iter().chain(state.shown.iter().flat_map(|it| words(&self.passages[*it]))).collect()
    }
}

impl HarderTasks for SearchWorld {
    const HARDER_STEPS_MAX: usize = Self::STEPS_MAX;

    fn harder_steps_max(&self) -> usize {
        self.steps_max()
    }

    /// Of a split, the questions that the plainest search does not answer; no training is kept from them.
    fn harder_tasks(&self, split: Split, seed: u64, count: usize) -> Vec<Task> {
        let n_all = self.by_split.get(&(split as u8)).map_or(0, Vec::len);
        let hidden = |it: &Task| self.difficulty(it) == "hidden";
        let mut hard: Vec<Task> = self.tasks(split, seed, n_all).into_iter().filter(hidden).collect();
        let n = hard.len();
        if n > 0 {
            hard = (0..count).map(|it| hard[it % n]).collect();
        }
        hard
    }
}

#[cfg(test)]
mod tests;
