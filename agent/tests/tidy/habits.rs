//! How files look: sizes, names, and what is not left lying about.

use std::collections::BTreeSet;

use super::source::{Source, numbered};

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;

/// What is longer, and why that is better than two.
const LONG: &[(&str, &str)] = &[];

/// Words that say nothing about what a thing is.
const EMPTY_WORDS: &[&str] = &[
    "manager",
    "managers",
    "helper",
    "helpers",
    "util",
    "utils",
    "handler",
    "handlers",
    "impl",
    "enhanced",
    "optimized",
    "v2",
];
/// Names that others have given.
const GIVEN_NAMES: &[(&str, &str)] = &[("agent/src/units/bus.rs", "systemd's interface is called Manager")];
const EMPTY_FOLDERS: &[&str] = &["common", "utils", "abstractions", "patterns"];

/// Who may sleep in a test, and why: each looks again until a condition holds or its time is up.
const MAY_SLEEP: &[(&str, &str)] = &[
    ("agent/benches/consensus/slow.rs", "it is what makes a disk slow"),
    ("agent/benches/measure/probe.rs", "a bench measures for a while, and looks again until a condition holds"),
    ("tests/prelude.py", "wait_for, which scenarios wait by"),
    ("tests/rig/driver.py", "retry, which the NixOS test driver gives a script"),
    ("tests/rig/demo.py", "waits until guests answer, and shows what it waits for"),
    ("tests/rig/host.py", "waits until a host has booted or is frozen"),
    ("tests/rig/machine.py", "waits for the conditions that a scenario names"),
    ("tests/rig/isolation.py", "waits until a cgroup is empty"),
    ("tests/the_fence_needs_nobody/scenario.py", "what runs there writes down when it does, fifty times a second"),
];

/// A file or a function that is too long.
pub fn too_long(sources: &[Source]) -> Vec<String> {
    let mut found = unused(LONG, |path| sources.iter().any(|source| source.path == path));
    for source in sources.iter().filter(|source| ["rs", "py", "nix"].iter().any(|e| source.has_extension(e))) {
        if LONG.iter().any(|(path, _)| source.path == *path) {
            continue;
        }
        let lines = source.text.lines().count();
        if lines > MAX_FILE_LINES {
            found.push(source.at(1, format_args!("{lines} lines; past {MAX_FILE_LINES} it wants a reason")));
        }
        for (line, name, length) in functions(source) {
            if length > MAX_FUNCTION_LINES {
                let what = format_args!("fn {name} has {length} lines; past {MAX_FUNCTION_LINES} it wants a reason");
                found.push(source.at(line, what));
            }
        }
    }
    found
}

/// Each function of a Rust file: where it begins, its name, and how many lines it has.
fn functions(source: &Source) -> Vec<(usize, &str, usize)> {
    let tokens = if source.has_extension("rs") { source.tokens() } else { Vec::new() };
    let mut functions = Vec::new();
    for (at, (line, _)) in tokens.iter().enumerate().filter(|(_, (_, token))| *token == "fn") {
        let (mut depth, mut aside) = (0_usize, 0_usize);
        for (last, token) in &tokens[at..] {
            match *token {
                "(" | "[" => aside += 1,
                ")" | "]" => aside = aside.saturating_sub(1),
                "{" => depth += 1,
                "}" if depth == 1 => {
                    functions.push((*line, tokens[at + 1].1, last - line + 1));
                    break;
                }
                "}" => depth = depth.saturating_sub(1),
                // A declaration, or a type.
                ";" if depth == 0 && aside == 0 => break,
                _ => {}
            }
        }
    }
    functions
}

/// A `.rs` file that no `mod` reaches, so that nothing compiles it.
pub fn orphans(sources: &[Source]) -> Vec<String> {
    let is_rust = |source: &&Source| source.has_extension("rs");
    let is_root = |path: &str| {
        path.ends_with("src/lib.rs")
            || path.ends_with("src/main.rs")
            || path.ends_with("build.rs")
            // Each is a program of the fuzzer's, named in fuzz/Cargo.toml.
            || path.starts_with("fuzz/targets/")
            || ["tests/", "benches/", "examples/"].iter().find_map(|kind| path.split_once(kind)).is_some_and(
                |(before, test)| {
                    !before.contains("src/")
                        && (!test.contains('/') || test.matches('/').count() == 1 && test.ends_with("/main.rs"))
                },
            )
    };
    let mut reached = BTreeSet::new();
    let mut waiting: Vec<&Source> = sources.iter().filter(is_rust).filter(|source| is_root(&source.path)).collect();
    while let Some(source) = waiting.pop() {
        if !reached.insert(source.path.as_str()) {
            continue;
        }
        let (folder, file) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
        let own = file.trim_end_matches(".rs");
        let folder = match own {
            "mod" | "main" | "lib" | "build" => folder.to_owned(),
            _ => format!("{folder}/{own}"),
        };
        let tokens = source.tokens();
        for name in tokens.windows(3).filter(|three| three[0].1 == "mod" && three[2].1 == ";").map(|three| three[1].1) {
            let wanted = [format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")];
            waiting.extend(sources.iter().filter(|other| wanted.contains(&other.path)));
        }
        let elsewhere =
            source.text.lines().filter_map(|line| line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]"));
        for path in elsewhere {
            let ups = path.matches("../").count();
            let folder = source.path.rsplitn(ups + 2, '/').last().unwrap_or("");
            let wanted = format!("{folder}/{}", path.trim_start_matches("../"));
            waiting.extend(sources.iter().filter(|other| other.path == wanted));
        }
    }
    let orphans = sources.iter().filter(is_rust).filter(|source| !reached.contains(source.path.as_str()));
    orphans.map(|source| source.at(1, "no `mod` reaches this file")).collect()
}

/// A name that says nothing, of a file, a folder, or a thing in Rust or Python.
pub fn empty_names(sources: &[Source]) -> Vec<String> {
    let mut found = unused(GIVEN_NAMES, |path| sources.iter().any(|source| source.path == path));
    for source in sources.iter().filter(|source| !GIVEN_NAMES.iter().any(|(path, _)| source.path == *path)) {
        for part in source.path.split('/').rev().skip(1) {
            if EMPTY_FOLDERS.contains(&part) {
                found.push(source.at(1, format_args!("nothing is to be found in a folder called {part}")));
            }
        }
        let stems = source.path.split('/').map(|part| part.split('.').next().unwrap_or(part));
        found.extend(stems.filter_map(empty_word).map(|word| source.at(1, says_nothing(&word))));
        let defines: &[&str] = match source.path.rsplit_once('.') {
            Some((_, "rs")) => &["fn", "struct", "enum", "trait", "type", "mod", "const", "static", "macro_rules"],
            Some((_, "py")) => &["def", "class"],
            _ => continue,
        };
        let tokens = source.tokens();
        for pair in tokens.windows(2).filter(|pair| defines.contains(&pair[0].1)) {
            let (line, name) = pair[1];
            if let Some(word) = empty_word(name) {
                found.push(source.at(line, says_nothing(&word)));
            }
            if matches!(pair[0].1, "fn" | "def") && name.starts_with("new_") {
                found.push(source.at(line, format_args!("{name}: only `new` makes a new one")));
            }
        }
    }
    found
}

fn says_nothing(word: &str) -> String {
    format!("{word:?} in a name says nothing about the thing")
}

/// The first empty word of a name, in whichever way its words are put together.
fn empty_word(name: &str) -> Option<String> {
    let mut words = vec![String::new()];
    let mut before = '_';
    for c in name.chars() {
        if c == '_' || c == '-' || (c.is_uppercase() && !before.is_uppercase()) {
            words.push(String::new());
        }
        if c.is_alphanumeric() {
            words.last_mut().expect("it begins with one").extend(c.to_lowercase());
        }
        before = c;
    }
    words.into_iter().find(|word| EMPTY_WORDS.contains(&word.as_str()))
}

/// A test that sleeps instead of waiting for a condition.
pub fn sleeping_tests(sources: &[Source]) -> Vec<String> {
    let mut found = unused(MAY_SLEEP, |path| sources.iter().any(|source| source.path == path && sleeps(&source.code)));
    for source in sources.iter().filter(|source| !MAY_SLEEP.iter().any(|(path, _)| source.path == *path)) {
        if !source.has_extension("rs") && !source.has_extension("py") {
            continue;
        }
        let asleep = numbered(&source.code).filter(|(number, line)| sleeps(line) && source.is_test(*number));
        found.extend(asleep.map(|(number, _)| source.at(number, "a test waits for a condition, it does not sleep")));
    }
    found
}

fn sleeps(text: &str) -> bool {
    let called = text.match_indices("sleep").any(|(at, word)| text[at + word.len()..].starts_with('('));
    // In a shell: `sleep 5`.
    called
        || text
            .match_indices("sleep ")
            .any(|(at, word)| text[at + word.len()..].starts_with(|c: char| c.is_ascii_digit()))
}

/// Exceptions that nothing needs any more.
fn unused(exceptions: &[(&str, &str)], needed: impl Fn(&str) -> bool) -> Vec<String> {
    let unneeded = exceptions.iter().filter(|(path, _)| !needed(path));
    unneeded.map(|(path, why)| format!("{path}: no exception is needed any more ({why})")).collect()
}

/// What is to be done, without saying why it isn't.
pub fn unexplained(sources: &[Source]) -> Vec<String> {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME")];
    let mut found = Vec::new();
    for source in sources {
        for (number, line) in numbered(&source.text) {
            for (at, mark) in marks.iter().filter_map(|mark| line.find(mark).map(|at| (at, mark))) {
                let reason = line[at + mark.len()..].strip_prefix(": ");
                if reason.is_none_or(|reason| reason.split_whitespace().count() < 4) {
                    found.push(
                        source.at(number, format_args!("{mark} without a reason: `{mark}: what, and why not yet`")),
                    );
                }
            }
        }
    }
    found
}

/// A test that isn't run, code that nothing calls, code in a comment.
pub fn switched_off(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let attributes = if source.has_extension("rs") { source.code.as_str() } else { "" };
        for (number, line) in numbered(attributes) {
            let attribute: String = line.split_whitespace().collect();
            if attribute.contains("#[ignore") {
                found.push(source.at(number, "a test that isn't run: mend it or remove it"));
            }
            if attribute.contains("[allow(dead_code") || attribute.contains("[expect(dead_code") {
                found.push(source.at(number, "code that nothing calls: remove it"));
            }
        }
        for (number, line) in numbered(&source.comments) {
            if is_code(line.trim_start().trim_start_matches('/').trim()) {
                found.push(source.at(number, "code in a comment: remove it"));
            }
        }
    }
    found
}

/// Prose ends with a full stop, or with a word; code with what closes it.
fn is_code(comment: &str) -> bool {
    let ends = [";", "{", "}", "),", "};", "],"];
    let begins = ["let ", "use crate", "pub fn ", "def ", "import ", "#[", "assert"];
    // `{ modules } → a manifest` tells what is in an argument.
    !comment.starts_with('{') && ends.iter().any(|end| comment.ends_with(end))
        || begins.iter().any(|begin| comment.starts_with(begin))
}

/// A path of somebody's own machine, or a number that only somebody's own records explain.
pub fn private_words(sources: &[Source]) -> Vec<String> {
    let places = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/Us", "ers/")];
    let records = [concat!("iss", "ue"), concat!("sess", "ion")];
    let mut found = Vec::new();
    for source in sources {
        for (number, line) in numbered(&source.text) {
            found.extend(
                places
                    .iter()
                    .filter(|place| line.contains(**place))
                    .map(|place| source.at(number, format_args!("{place} is a place of one machine only"))),
            );
            let words: Vec<_> =
                line.split(|c: char| !c.is_alphanumeric() && c != '#').filter(|w| !w.is_empty()).collect();
            for pair in words.windows(2) {
                let word = pair[0].to_lowercase();
                let is_number = |word: &str| {
                    let word = word.trim_start_matches('#');
                    !word.is_empty() && word.chars().all(|c| c.is_ascii_digit())
                };
                let is_record = records.contains(&word.trim_end_matches('s'));
                if is_record && is_number(pair[1]) && !line.contains("://") {
                    found.push(source.at(number, format_args!("{} {}: say what it is about", pair[0], pair[1])));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, text: &str) -> Vec<Source> {
        vec![Source::new(path, text)]
    }

    /// What a rule finds in a file, but for exceptions that aren't needed in a repository of one.
    fn unexcused(rule: fn(&[Source]) -> Vec<String>, path: &str, text: &str) -> usize {
        rule(&of(path, text)).iter().filter(|line| !line.contains("no exception is needed")).count()
    }

    #[test]
    fn a_long_file_and_a_long_function_are_found() {
        assert!(too_long(&of("a.nix", &"x\n".repeat(MAX_FILE_LINES))).is_empty());
        assert_eq!(too_long(&of("a.nix", &"x\n".repeat(MAX_FILE_LINES + 1))).len(), 1);
        let function =
            |lines: usize| format!("fn short() {{}}\nfn f() -> [u8; 1] {{\n{}}}\n", "    {}\n".repeat(lines));
        assert!(too_long(&of("a.rs", &function(MAX_FUNCTION_LINES - 2))).is_empty());
        let found = too_long(&of("a.rs", &function(MAX_FUNCTION_LINES - 1)));
        assert_eq!(found, ["a.rs:2: fn f has 71 lines; past 70 it wants a reason"]);
    }

    #[test]
    fn a_file_that_no_mod_reaches_is_found() {
        let tree = |root: &str| {
            vec![
                Source::new("agent/src/lib.rs", root),
                Source::new("agent/src/node.rs", "mod apply;"),
                Source::new("agent/src/node/apply.rs", ""),
                Source::new("agent/tests/log/main.rs", "mod power;\n#[path = \"../support/mod.rs\"]\nmod support;"),
                Source::new("agent/tests/support/mod.rs", "mod units;"),
                Source::new("agent/tests/support/units.rs", ""),
                Source::new("agent/tests/log/power.rs", ""),
            ]
        };
        assert!(orphans(&tree("pub mod node;")).is_empty());
        assert_eq!(orphans(&tree("// mod node;")).len(), 2);
    }

    #[test]
    fn names_that_say_nothing_are_found() {
        for code in ["struct NodeManager;", "enum Msg_handler {}", "fn new_node() {}", "mod util {}", "struct StateV2;"]
        {
            assert_eq!(unexcused(empty_names, "a.rs", code), 1, "{code}");
        }
        for path in ["agent/src/common/a.rs", "modules/helpers.nix", "tests/rig/node_utils.py"] {
            assert_eq!(unexcused(empty_names, path, ""), 1, "{path}");
        }
        let fine = "impl Handle { fn new() -> Self {} fn renew_handle() {} }\nuse hyper_util::rt; struct ImplicitV20;";
        assert_eq!(unexcused(empty_names, "hosts/common.rs", fine), 0);
    }

    #[test]
    fn a_test_that_sleeps_is_found() {
        let sleeping = |path: &str, text: &str| unexcused(sleeping_tests, path, text);
        let sleep = "    tokio::time::sleep(PAUSE).await;\n";
        assert_eq!(sleeping("agent/tests/log/main.rs", sleep), 1);
        assert_eq!(sleeping("agent/src/node/tests.rs", sleep), 1);
        assert_eq!(sleeping("agent/src/node.rs", sleep), 0);
        assert_eq!(sleeping("agent/src/node.rs", &format!("{sleep}#[cfg(test)]\n{sleep}")), 1);
        assert_eq!(sleeping("tests/a_vm_runs/scenario.py", "alpha.succeed(\"sleep 5\")"), 1);
        assert_eq!(sleeping("tests/prelude.py", "time.sleep(0.1)"), 0);
        assert!(sleeping_tests(&[]).len() == MAY_SLEEP.len(), "an exception for a file that doesn't sleep");
    }

    #[test]
    fn a_mark_without_a_reason_is_found() {
        let mark = concat!("TO", "DO");
        assert_eq!(unexplained(&of("a.nix", &format!("# {mark}"))).len(), 1);
        assert_eq!(unexplained(&of("a.rs", &format!("// {mark}: later"))).len(), 1);
        assert!(unexplained(&of("a.rs", &format!("// {mark}: remove it once systemd 258 is everywhere"))).is_empty());
    }

    #[test]
    fn what_is_switched_off_is_found() {
        for code in ["#[ignore = \"slow\"]", "#![allow(dead_code)]", "# [ expect(dead_code, reason = \"\") ]"] {
            assert_eq!(switched_off(&of("a.rs", code)).len(), 1, "{code}");
        }
        assert_eq!(switched_off(&of("a.rs", "// units.stop(vm).await?;")).len(), 1);
        assert_eq!(switched_off(&of("a.nix", "  # enable = true;")).len(), 1);
        assert_eq!(switched_off(&of("a.py", "# import json")).len(), 1);
        assert!(switched_off(&of("a.rs", "// Why it is so.\n/// let doc = true;\nlet s = \"#[ignore]\";")).is_empty());
    }

    #[test]
    fn private_places_and_numbers_are_found() {
        assert_eq!(private_words(&of("a.md", concat!("see /wo", "rk/x"))).len(), 1);
        assert_eq!(private_words(&of("a.md", concat!("iss", "ue #12 and Sess", "ion 3"))).len(), 2);
        let fine = concat!("an iss", "ue, 5 sess", "ions, https://example.org/iss", "ues/12 (iss", "ue 12)");
        assert!(private_words(&of("a.md", fine)).is_empty());
    }
}
