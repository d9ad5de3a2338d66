//! The repository keeps the habits that a compiler can't check. Each rule also has a test that shows what it finds.

mod habits;
mod rooms;
mod source;

use std::path::Path;

use source::Source;

/// A rule: what it finds, one line each.
type Rule = fn(&[Source]) -> Vec<String>;

const RULES: &[Rule] = &[
    habits::too_long,
    habits::orphans,
    habits::empty_names,
    habits::sleeping_tests,
    habits::unexplained,
    habits::switched_off,
    habits::private_words,
    rooms::impure,
    rooms::forbidden_edges,
    rooms::misplaced_dependencies,
];

#[test]
fn the_repository_is_tidy() {
    let mut sources = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a folder of the repository");
    read(root, "", &mut sources);
    assert!(sources.iter().any(|source| source.path == "agent/tests/tidy/main.rs"), "{} was not read", root.display());
    let found: Vec<String> = RULES.iter().flat_map(|rule| rule(&sources)).collect();
    assert!(found.is_empty(), "{} are untidy:\n  {}\n", found.len(), found.join("\n  "));
}

/// All text below a folder, without what was built and what tools keep for themselves.
fn read(folder: &Path, path: &str, sources: &mut Vec<Source>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).expect("the folder is there").map(Result::unwrap).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().expect("it was there just now");
        let is_foreign = name.starts_with('.') && name != ".ci";
        let is_built = matches!(name.as_str(), "target" | "result" | "__pycache__" | "Cargo.lock" | "flake.lock");
        if is_foreign || is_built || kind.is_symlink() {
            continue;
        }
        if kind.is_dir() {
            read(&entry.path(), &format!("{path}{name}/"), sources);
        } else if let Ok(text) = std::fs::read_to_string(entry.path()) {
            sources.push(Source::new(format!("{path}{name}"), text));
        }
    }
}
