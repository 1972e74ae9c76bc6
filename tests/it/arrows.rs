//! Who may import whom: the table in `docs/architecture.md` is what this test reads, so that the two cannot differ.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::tree::{report, root};

/// Packages with one home: whoever else imports them breaks the barrier that its crate exists for.
const HOMES: &[(&str, &[&str])] = &[
    ("candle-core", &["fsq-trainer"]),
    ("axum", &["fsq-server"]),
    ("llguidance", &["fsq-server"]),
    ("tokio-rustls", &["fsq-server"]),
    ("clap", &["fsq"]),
    ("anyhow", &["fsq"]),
    ("memmap2", &["fsq-gguf", "fsq-checkpoint"]),
    ("minijinja", &["fsq-model", "fsq"]),
];
/// What must not be in the tree of the edge build: our crates for training, the worlds it trains in, what only training
/// draws, allocates or multiplies with, compilers of C and C++, whatever opens connections.
const NOT_LEAN: &[&str] = &[
    "fsq-trainer",
    "fsq-episodes",
    "fsq-environments",
    "rand_distr",
    "mimalloc",
    "humantime",
    "cc",
    "ring",
    "cmake",
    "bindgen",
    "ureq",
    "hf-hub",
    "reqwest",
];
/// Families of packages of which none may be there, by how their names begin: tensor libraries, Python.
const NOT_LEAN_FAMILIES: &[&str] = &["candle", "gemm", "cudarc", "tch", "ort", "pyo3", "onig"];

#[test]
fn every_crate_imports_only_what_the_table_allows() {
    let allowed = allowed_arrows();
    let mut findings = Vec::new();
    for (package, dependencies) in packages() {
        let ours = |it: &&String| *it == "fsq" || it.starts_with("fsq-");
        let Some(may) = allowed.get(&package) else {
            findings.push(format!("{package} has no row in the table of docs/architecture.md"));
            continue;
        };
        for dependency in dependencies.iter().filter(ours).filter(|it| !may.contains(*it)) {
            findings.push(format!("{package} may not import {dependency}"));
        }
    }
    report("arrows", &findings);
}

#[test]
fn the_table_has_no_row_for_a_crate_that_is_gone() {
    let packages = packages();
    let named: BTreeSet<String> =
        allowed_arrows().into_iter().flat_map(|(from, to)| to.into_iter().chain([from])).collect();
    let gone: Vec<String> = named.into_iter().filter(|it| !packages.contains_key(it)).collect();
    report("no such crate", &gone);
}

#[test]
fn packages_with_one_home_stay_there() {
    let mut findings = Vec::new();
    for (package, dependencies) in packages() {
        for (dependency, homes) in HOMES {
            if dependencies.contains(*dependency) && !homes.contains(&package.as_str()) {
                findings.push(format!("{package} imports {dependency}, which belongs to {}", homes.join(" and ")));
            }
        }
    }
    report("homes", &findings);
}

#[test]
fn the_lean_build_has_no_training_no_python_and_no_c_compiler() {
    let arguments = ["--package", "fsq", "--no-default-features", "--features", "serve", "--edges", "normal,build"];
    let listed = cargo(&[&["tree", "--prefix", "none", "--offline", "--locked"], &arguments[..]].concat());
    let names: BTreeSet<&str> = listed.lines().filter_map(|it| it.split(' ').next()).collect();
    assert!(names.contains("fsq-server"), "not the tree of the lean build:\n{listed}");
    let is_family = |name: &str| {
        NOT_LEAN_FAMILIES
            .iter()
            .any(|it| name.strip_prefix(it).is_some_and(|it| it.is_empty() || it.starts_with(['-', '_'])))
    };
    let found: Vec<String> =
        names.iter().filter(|it| NOT_LEAN.contains(it) || is_family(it)).map(ToString::to_string).collect();
    report("in the lean build", &found);
}

/// The rows of the table under `## Arrows`, by package name.
fn allowed_arrows() -> BTreeMap<String, BTreeSet<String>> {
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let section = page.split_once("\n## Arrows\n").expect("docs/architecture.md has a section `Arrows`").1;
    let section = section.split("\n## ").next().unwrap();
    let everything: BTreeSet<String> = packages().into_keys().collect();
    let mut table = BTreeMap::new();
    for row in section.lines().filter(|it| it.starts_with("| `")) {
        let (left, right) = row.trim_matches('|').split_once('|').unwrap();
        let may = match right.trim() {
            "everything" => everything.clone(),
            "nothing of ours" => BTreeSet::new(),
            names => package_names(names),
        };
        for package in package_names(left) {
            assert!(table.insert(package.clone(), may.clone()).is_none(), "two rows for {package}");
        }
    }
    assert!(table.len() > 10, "only {} crates in the table", table.len());
    table
}

/// "`gguf` `kernels`" → `fsq-gguf`, `fsq-kernels`; `fsq` stays what it is.
fn package_names(cell: &str) -> BTreeSet<String> {
    let names = cell.split('`').skip(1).step_by(2);
    names.map(|it| if it == "fsq" { it.to_string() } else { format!("fsq-{it}") }).collect()
}

/// Our packages and all that each names in its `Cargo.toml`, for builds and tests too.
fn packages() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline", "--locked"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let name = |it: &Value| it["name"].as_str().unwrap().to_string();
    let dependencies = |it: &Value| it["dependencies"].as_array().unwrap().iter().map(name).collect();
    metadata["packages"].as_array().unwrap().iter().map(|it| (name(it), dependencies(it))).collect()
}

#[expect(clippy::disallowed_methods, reason = "cargo tells a test by this variable which cargo runs it")]
fn cargo(arguments: &[&str]) -> String {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
