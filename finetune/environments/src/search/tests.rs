//! Questions over a small folder: what is found, what is right, and what is refused.

use super::*;
use crate::{play_logged, succeeded};

const TEXTS: [(&str, &str); 3] = [
    (
        "rivers.txt",
        "The Elbe rises in the Giant Mountains.\nIt reaches the North Sea.\n\nThe Vltava flows through Prague.\n",
    ),
    (
        "people.md",
        "# People\n\nAda Lovelace wrote notes on the Analytical Engine.\n\nGrace Hopper made a compiler in 1952.\n",
    ),
    ("below/more.txt", "A longer passage about nothing in particular, only there to be found by nobody at all.\n"),
];

const QUESTIONS: &str = r#"{"question": "Where does the Elbe rise?", "answers": ["the Giant Mountains", "Krkonoše"]}
{"question": "Which city does the Vltava flow through?", "answers": ["Prague"]}

{"question": "Who wrote notes on the Analytical Engine?", "answers": ["Ada Lovelace", "Lovelace"]}
{"question": "When did Grace Hopper make a compiler?", "answers": ["1952"]}
{"question": "What is the capital of nowhere?", "answers": ["Erewhon"]}
{"question": "What is the capital of nowhere?", "answers": ["Erewhon"]}
"#;

fn options(folder: &Path) -> SearchOptions {
    SearchOptions {
        folder: folder.join("texts"),
        questions: folder.join("questions.jsonl"),
        passage_words: 20,
        results: 2,
        calls: 3,
    }
}

fn written(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("fsq-search-{name}-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("texts/below")).unwrap();
    for (path, text) in TEXTS {
        std::fs::write(folder.join("texts").join(path), text).unwrap();
    }
    std::fs::write(folder.join("questions.jsonl"), QUESTIONS).unwrap();
    folder
}

fn task(world: &SearchWorld, begins: &str) -> Task {
    let question = world.questions.iter().position(|it| it.question.starts_with(begins)).unwrap();
    Task { question }
}

#[test]
fn searches_find_passages_and_answers_are_compared_as_words() {
    let folder = written("find");
    let world = SearchWorld::open(&options(&folder)).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(world.counts(), (6, 5));
    let task = task(&world, "Where does the Elbe");
    let start = world.start(&task);
    assert_eq!(world.observe(&task, &start), "ask Where does the Elbe rise? calls 3");
    let read = world.step(&task, &start, "search elbe mountains").unwrap();
    assert!(read.found && read.calls_left == 2, "{read:?}");
    let seen = world.observe(&task, &read);
    assert!(seen.starts_with("calls 2 read\nThe Elbe rises in the Giant Mountains. It reaches"), "{seen}");
    for (answer, end) in [
        ("answer Giant mountains!", End::Success),
        ("answer the giant mountains", End::Success),
        ("answer krkonoše", End::Success),
        ("answer giant", End::Failure),
        ("answer Prague", End::Failure),
    ] {
        let answered = world.step(&task, &read, answer).unwrap();
        assert_eq!(world.end(&task, &answered), Some(end), "{answer}");
        assert!(world.step(&task, &answered, "search elbe").is_err());
    }
    let missed = world.step(&task, &start, "search compiler").unwrap();
    assert!(!missed.found);
    for wrong in ["search", "search !?", "answer ", "look", ""] {
        assert!(world.step(&task, &start, wrong).is_err(), "{wrong}");
    }
    let spent = ["search a b", "search c d", "search e f"].iter();
    let spent = spent.fold(start, |state, it| world.step(&task, &state, it).unwrap());
    assert!(world.step(&task, &spent, "search elbe").is_err());
    assert!(world.legal_actions(&task, &spent).iter().all(|it| it.starts_with("answer ")));
}

#[test]
fn logged_play_answers_what_is_written_and_blocks_tell_no_answer() {
    let folder = written("play");
    let world = SearchWorld::open(&options(&folder)).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (begins, is_written) in [("Where", true), ("Which", true), ("Who", true), ("When", true), ("What", false)] {
        let task = task(&world, begins);
        let start = world.start(&task);
        let path = play_logged(&world, &task, &start, Skill { epsilon: 0.0 }, &mut rng);
        assert_eq!(succeeded(&world, &task, &path), is_written, "{begins}: {path:?}");
        let (keyword, analysis) = world.summary(&task, &start, &path);
        let text = format!("{} {keyword} {analysis}", world.lines(&task, &start, &path).join(" "));
        let hidden = world.hidden_names(&task, &start);
        assert!(!hidden.is_empty());
        assert!(words(&text).iter().all(|it| !hidden.contains(it)), "{hidden:?} in {text}");
        for action in path.iter().map(|it| &it.0).chain(&world.legal_actions(&task, &start)) {
            assert!(world.step(&task, &start, action).is_ok(), "{action}");
        }
    }
}

#[test]
fn splits_share_no_question() {
    let folder = written("split");
    let many: String =
        (0..400).map(|it| format!("{{\"question\": \"number {it}?\", \"answers\": [\"{it}\"]}}\n")).collect();
    std::fs::write(folder.join("questions.jsonl"), many).unwrap();
    let world = SearchWorld::open(&options(&folder)).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let of = |split| world.tasks(split, 1, 500).iter().map(|it| it.question).collect::<HashSet<_>>();
    let [train, calibration, test] = [Split::Train, Split::Calibration, Split::Test].map(of);
    assert!(train.is_disjoint(&test) && train.is_disjoint(&calibration) && test.is_disjoint(&calibration));
    assert_eq!(train.len() + calibration.len() + test.len(), 400);
    assert!(train.len() > 200 && calibration.len() > 20 && test.len() > 80);
}

#[test]
fn what_cannot_be_used_is_named() {
    let folder = written("refused");
    let refused = || SearchWorld::open(&options(&folder)).err().map_or_else(String::new, |it| it.to_string());
    let questions = folder.join("questions.jsonl");
    for (text, expected) in [
        ("{\"question\": \"who?\"}", ":1: field ``: expected `question` and a list of `answers`"),
        ("\n{\"question\": \"?\", \"answers\": [\"x\"]}", ":2: field `question`: expected a question in words"),
        ("{\"question\": \"who?\", \"answers\": []}", ":1: field `answers`: expected answers of words"),
        ("{\"question\": \"who?\", \"answers\": [\"the\"]}", "field `answers`"),
        ("\n", "expected at least one question, found none"),
    ] {
        std::fs::write(&questions, text).unwrap();
        assert!(refused().contains(expected), "{}", refused());
    }
    std::fs::write(&questions, b"\xff").unwrap();
    assert!(refused().contains("expected UTF-8, found byte 0xFF at byte 0"), "{}", refused());
    std::fs::remove_file(&questions).unwrap();
    assert!(refused().contains("questions.jsonl: "), "{}", refused());
    for (path, _) in TEXTS {
        std::fs::write(folder.join("texts").join(path), "\n---\n").unwrap();
    }
    assert!(refused().contains("expected `.txt` or `.md` files with words, found 3 files"), "{}", refused());
    std::fs::remove_dir_all(folder.join("texts")).unwrap();
    assert!(refused().contains("texts: "), "{}", refused());
    std::fs::remove_dir_all(&folder).unwrap();
}
