//! The style that a machine can check, as tests over the tree. `docs/style.md` says why.

use crate::tree::{files, report, rust_files};

/// Characters in a line of Rust.
const LINE_WIDTH_MAX: usize = 120;
/// Lines of a function, signature and closing brace counted.
const FUNCTION_LINES_MAX: usize = 70;
/// Lines of a Rust file.
const FILE_LINES_MAX: usize = 600;

/// Longer than the limit, for a reason; the number is what it has now and may only shrink.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[];
/// Tables may be long.
const LONG_FILES: &[(&str, usize)] = &[];

/// What is not left in a tree that others build on. Split, so that this file does not name itself.
const UNFINISHED: &[&str] = &[
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("to", "do!("),
    concat!("unimplem", "ented!("),
    concat!("#[ig", "nore"),
];
/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "manager", "common", "misc"];
/// The beginning of a path that exists on one machine only.
const MACHINE_PATHS: &[&str] =
    &[concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];

#[test]
fn every_file_opens_by_saying_what_it_is() {
    let files = rust_files();
    let silent = files.iter().filter(|it| !it.text.as_deref().is_some_and(|text| text.starts_with("//! ")));
    report("no `//!` line first", &silent.map(|it| it.path.clone()).collect::<Vec<_>>());
}

#[test]
fn lines_fit() {
    let mut findings = Vec::new();
    for file in rust_files() {
        for (index, line) in file.text.iter().flat_map(|it| it.lines()).enumerate() {
            let width = line.chars().count();
            if width > LINE_WIDTH_MAX {
                findings.push(format!("{}:{}: {width} characters", file.path, index + 1));
            }
        }
    }
    report("line width", &findings);
}

#[test]
fn functions_stay_short() {
    let mut findings = Vec::new();
    let mut excused: Vec<_> = LONG_FUNCTIONS.iter().collect();
    for file in rust_files() {
        for function in functions(file.text.as_deref().unwrap_or_default()) {
            let excuse = LONG_FUNCTIONS.iter().find(|it| (it.0, it.1) == (&*file.path, &*function.name));
            let limit = excuse.map_or(FUNCTION_LINES_MAX, |it| it.2);
            if function.lines > limit {
                let Function { name, line, lines } = function;
                findings.push(format!("{}:{line}: `{name}` has {lines} lines, allowed {limit}", file.path));
            } else if function.lines > FUNCTION_LINES_MAX {
                excused.retain(|it| (it.0, it.1) != (&*file.path, &*function.name));
            }
        }
    }
    findings.extend(excused.iter().map(|it| format!("{}: `{}` needs its exception no more", it.0, it.1)));
    report("function length", &findings);
}

#[test]
fn files_stay_short() {
    let mut findings = Vec::new();
    for file in rust_files() {
        let lines = file.text.as_deref().unwrap_or_default().lines().count();
        let limit = LONG_FILES.iter().find(|it| it.0 == file.path).map_or(FILE_LINES_MAX, |it| it.1);
        if lines > limit {
            findings.push(format!("{}: {lines} lines, allowed {limit}", file.path));
        }
    }
    report("file length", &findings);
}

#[test]
fn nothing_is_left_unfinished() {
    let mut findings = Vec::new();
    for file in files() {
        let code = matches!(file.extension(), "rs" | "py" | "sh" | "toml" | "html" | "js" | "css")
            || file.extension().is_empty();
        for (index, line) in file.text.iter().flat_map(|it| it.lines()).enumerate().filter(|_| code) {
            for word in UNFINISHED.iter().filter(|it| line.contains(**it)) {
                findings.push(format!("{}:{}: `{word}`", file.path, index + 1));
            }
        }
    }
    report("unfinished", &findings);
}

#[test]
fn names_say_what_is_inside() {
    let files = rust_files();
    let empty = files.iter().filter(|it| {
        let names = it.path.trim_end_matches(".rs").split('/');
        names.into_iter().any(|name| EMPTY_NAMES.contains(&name))
    });
    report("names", &empty.map(|it| it.path.clone()).collect::<Vec<_>>());
}

#[test]
fn no_path_of_one_machine() {
    let mut findings = Vec::new();
    for file in files() {
        for (index, line) in file.text.iter().flat_map(|it| it.lines()).enumerate() {
            for path in MACHINE_PATHS.iter().filter(|it| begins_a_path(line, it)) {
                findings.push(format!("{}:{}: {path}", file.path, index + 1));
            }
        }
    }
    report("machine paths", &findings);
}

#[test]
fn every_fixture_is_used() {
    let files = files();
    let code: Vec<&str> =
        files.iter().filter(|it| it.extension() == "rs").filter_map(|it| it.text.as_deref()).collect();
    let mut findings = Vec::new();
    for file in
        files.iter().filter(|it| it.path.starts_with("tests/fixtures/") || it.path.starts_with("tests/hostile/"))
    {
        // What makes and explains fixtures is not one.
        if matches!(file.extension(), "py" | "md") || file.name() == "requirements.txt" {
            continue;
        }
        let folder = file.folder().trim_start_matches("tests/fixtures/").trim_start_matches("tests/");
        // A test names the file, or the folder that it loads whole.
        let named = |text: &&str| text.contains(file.name()) || text.contains(&format!("{folder}\""));
        if !code.iter().any(named) {
            findings.push(file.path.clone());
        }
    }
    report("fixtures that no test names", &findings);
}

/// `/x/` inside `a/x/` is a relative path; after a blank, a quote or `=` it is an absolute one.
fn begins_a_path(line: &str, prefix: &str) -> bool {
    line.match_indices(prefix).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|it| !(it.is_alphanumeric() || matches!(it, '.' | '_' | '-' | '~' | '}' | '*')))
    })
}

/// A function's place and length.
struct Function {
    name: String,
    line: usize,
    lines: usize,
}

/// The functions of a file that rustfmt has laid out: one ends at the first `}` that stands as far right as its start.
fn functions(text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        if line.ends_with(';') || line.ends_with('}') {
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let ends = |it: &&str| {
            it.strip_prefix(indent).is_some_and(|rest| rest == "}" || (rest.starts_with(')') && rest.ends_with(';')))
        };
        if let Some(length) = lines[start + 1..].iter().position(ends) {
            found.push(Function { name: name.to_string(), line: start + 1, lines: length + 2 });
        }
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    if let Some(after) = rest.strip_prefix("pub") {
        rest = after.strip_prefix('(').and_then(|it| it.split_once(')')).map_or(after, |it| it.1).trim_start();
    }
    for qualifier in ["const ", "async ", "unsafe ", "extern \"C\" "] {
        rest = rest.strip_prefix(qualifier).unwrap_or(rest);
    }
    rest.strip_prefix("fn ")?.split(['(', '<']).next()
}

#[test]
fn function_lengths_are_counted_right() {
    let text = [
        "fn one() {}",
        "impl It {",
        "    pub(crate) const fn two(",
        "        self,",
        "    ) -> u8 {",
        "        if x {",
        "        }",
        "    }",
        "    fn declared(&self);",
        "}",
    ]
    .join("\n");
    let found: Vec<_> = functions(&text).into_iter().map(|it| (it.name, it.line, it.lines)).collect();
    assert_eq!(found, [("two".to_string(), 3, 6)]);
}
