//! The documents: links lead somewhere, and the map names every folder.

use std::collections::BTreeSet;

use crate::tree::{Source, files, report, root};

#[test]
fn links_lead_somewhere() {
    let mut findings = Vec::new();
    for page in pages() {
        for (line, target) in links(page.text.as_deref().unwrap()) {
            if let Err(reason) = follow(&page, &target) {
                findings.push(format!("{}:{line}: `{target}` {reason}", page.path));
            }
        }
    }
    report("dead links", &findings);
}

#[test]
fn a_page_has_one_title_and_it_comes_first() {
    let mut findings = Vec::new();
    for page in pages() {
        let text = prose(page.text.as_deref().unwrap());
        let titles = text.iter().filter(|(_, it)| it.starts_with("# ")).count();
        let first = text.first().is_some_and(|(_, it)| it.starts_with("# "));
        if titles != 1 || !first {
            findings.push(format!("{}: {titles} titles", page.path));
        }
    }
    report("titles", &findings);
}

#[test]
fn the_map_names_every_crate_and_every_decision_is_linked() {
    let files = files();
    let architecture = text_of(&files, "docs/architecture.md");
    let mut findings = Vec::new();
    for manifest in files.iter().filter(|it| it.name() == "Cargo.toml" && !it.folder().is_empty()) {
        if !architecture.contains(&format!("`{}/`", manifest.folder())) {
            findings.push(format!("docs/architecture.md does not name `{}/`", manifest.folder()));
        }
    }
    for decision in files.iter().filter(|it| it.folder() == "docs/decisions") {
        if !architecture.contains(&format!("](decisions/{})", decision.name())) {
            findings.push(format!("docs/architecture.md does not link {}", decision.path));
        }
    }
    report("map", &findings);
}

fn pages() -> Vec<Source> {
    files().into_iter().filter(|it| it.extension() == "md").collect()
}

fn text_of<'a>(files: &'a [Source], path: &str) -> &'a str {
    let file = files.iter().find(|it| it.path == path);
    file.and_then(|it| it.text.as_deref()).unwrap_or_else(|| panic!("{path} is missing"))
}

/// The lines outside code fences, numbered from 1.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        if !fenced && !fence && !line.trim().is_empty() {
            lines.push((index + 1, line));
        }
    }
    lines
}

/// Inline links and images, and the `src` and `href` of the HTML in a page, with their line numbers.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        // Code spans are not links: even pieces lie outside the backticks.
        let outside: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for (opening, closing) in [("](", ')'), ("src=\"", '"'), ("href=\"", '"')] {
            let targets = outside.split(opening).skip(1).filter_map(|it| it.split_once(closing));
            found.extend(targets.map(|it| (number, it.0.to_string())));
        }
    }
    found
}

fn follow(page: &Source, target: &str) -> Result<(), String> {
    if target.starts_with("https://") || target.starts_with("http://") {
        return Ok(());
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |it| (it.0, Some(it.1)));
    let full = match path {
        "" => root().join(&page.path),
        path => root().join(page.folder()).join(path),
    };
    if !full.exists() {
        return Err("does not exist".into());
    }
    let Some(anchor) = anchor else { return Ok(()) };
    let text = std::fs::read_to_string(&full).map_err(|it| it.to_string())?;
    if anchors(&text).contains(anchor) { Ok(()) } else { Err("has no such heading".into()) }
}

/// Headings as the usual renderers turn them into anchors.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).into_iter().filter(|(_, it)| it.starts_with('#'));
    let slug = |heading: &str| -> String {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'));
        kept.map(|it| if it == ' ' { '-' } else { it }).collect()
    };
    headings.map(|(_, it)| slug(it)).collect()
}
