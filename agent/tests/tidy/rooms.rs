//! Which room may know which, and which crates: the tables behind the picture in ARCHITECTURE.md.

use std::collections::BTreeSet;

use super::source::{Source, numbered};

type Table = &'static [(&'static str, &'static [&'static str])];

/// Whom a room imports, or the one part of another room that it may. A room that isn't here imports none.
///
/// Rooms that stand for something outside know no other: they meet in those that compose them. Three know one neighbour's values:
/// the store wants the log's proof that a commit is on disk; units are started with the files that the gate reads; the gate
/// asks the fence.
const SHELL_EDGES: Table = &[
    // These compose.
    (
        "agent",
        &[
            "api",
            "config",
            "gate::files",
            "identity",
            "log",
            "nix",
            "node",
            "probe",
            "seat",
            "store",
            "telemetry",
            "transport",
            "units",
            "worker",
        ],
    ),
    ("api", &["identity", "node", "transport"]),
    ("cli", &["agent", "api::proto", "config", "fence", "gate", "probe"]),
    ("node", &["background", "boot_time", "log", "memory", "store", "transport"]),
    ("seat", &["config", "identity", "store", "transport"]),
    ("worker", &["boot_time", "config", "fence", "node", "units"]),
    // These stand for something outside.
    ("fence", &["boot_time"]),
    ("gate", &["fence"]),
    ("store", &[]),
    ("transport", &["background", "identity"]),
    ("units", &["fence", "gate::files", "nix"]),
];

/// The same within the core.
const CORE_EDGES: Table = &[
    ("command", &["manifest", "types"]),
    ("driver", &["command::MAX_BYTES", "types"]),
    ("fence", &["types"]),
    ("lease", &["command", "fence", "state", "types"]),
    ("manifest", &["types", "unit"]),
    ("membership", &["driver", "manifest::MAX_SERVERS", "state", "types"]),
    ("plan", &["manifest", "schedule", "state", "types"]),
    ("reconcile", &["command", "state", "types", "unit"]),
    ("schedule", &["command", "manifest", "state", "types"]),
    ("state", &["command", "manifest", "types", "unit"]),
    ("unit", &["types"]),
];

/// For all rooms alike.
const EVERY_ROOM: &[&str] = &["*"];
/// For the code that is made from `proto/` only.
const GENERATED: &[&str] = &[];

/// Each dependency of `blixard`, and the rooms that it is there for.
const SHELL_DEPENDENCIES: Table = &[
    ("blixard-core", EVERY_ROOM),
    ("clap", &["cli", "gate", "main"]),
    ("crc32c", &["log", "store"]),
    ("data-encoding", &["identity"]),
    ("futures-util", &["api", "node", "transport", "units"]),
    ("http", &["api", "transport"]),
    ("http-body-util", &["api", "transport"]),
    ("hyper", &["api", "transport"]),
    ("hyper-util", &["cli", "transport"]),
    ("libc", &["fence", "memory"]),
    ("postcard", &["agent", "fence", "identity", "node", "seat", "store"]),
    ("prost", GENERATED),
    ("raft", &["log", "transport"]),
    ("rcgen", &["identity"]),
    ("redb", &["store"]),
    ("ring", &["identity"]),
    ("rustix", &["agent", "background", "boot_time", "cli", "fence", "gate", "probe", "store"]),
    ("rustls", &["identity", "transport"]),
    ("sd-notify", &["agent", "fence", "gate"]),
    ("serde", EVERY_ROOM),
    ("serde_json", &["cli", "gate"]),
    ("thiserror", EVERY_ROOM),
    ("time", &["cli"]),
    ("tokio", &["agent", "api", "cli", "nix", "node", "seat", "transport", "units", "worker"]),
    ("tokio-rustls", &["transport"]),
    ("tokio-stream", &["api", "cli", "transport"]),
    ("toml", &["config"]),
    ("tonic", &["agent", "api", "cli", "transport"]),
    ("tonic-prost", GENERATED),
    ("tower", &["api", "cli", "transport"]),
    ("tracing", &["agent", "api", "background", "node", "seat", "transport", "units", "worker"]),
    ("tracing-journald", &["telemetry"]),
    ("tracing-subscriber", &["telemetry"]),
    ("x509-parser", &["identity"]),
    ("zbus", &["units"]),
];

/// Each dependency of `blixard-core`: raft is the driver's alone.
const CORE_DEPENDENCIES: Table = &[
    ("data-encoding", &["types"]),
    ("litemap", &["types"]),
    ("nix-derivation", &["types"]),
    ("postcard", &["command", "manifest", "state"]),
    ("raft", &["driver"]),
    ("raft-prost", &["driver"]),
    ("serde", EVERY_ROOM),
    ("serde_json", &["manifest"]),
    ("serde_path_to_error", &["manifest"]),
    ("sha2", &["types"]),
    ("slog", &["driver"]),
    ("thiserror", EVERY_ROOM),
];

const SHELL: &str = "agent/";
const CORE: &str = "agent/core/";

/// What the core must not touch: its clock is ticks, its randomness a seed, its maps are ordered, and it does no IO.
const IMPURE: &[&str] = &[
    "tokio",
    "rand",
    "getrandom",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::env",
    "std::os",
    "std::process",
    "std::thread",
    "std::sync::mpsc",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::collections::HashMap",
    "std::collections::HashSet",
];

/// The core reaching for the world. clippy says so as well, where it is run.
pub fn impure(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.below(CORE).is_some_and(|rest| rest.starts_with("src/"))) {
        for (line, path) in &source.paths {
            if IMPURE.iter().any(|impure| begins(path, impure)) {
                found.push(
                    source.at(*line, format_args!("the core is deterministic and does no IO: {}", path.join("::"))),
                );
            }
        }
    }
    found
}

/// A room that imports another against the table, or may and doesn't. Tests may bring rooms together.
pub fn forbidden_edges(sources: &[Source]) -> Vec<String> {
    let mut found = check_edges(sources, SHELL, SHELL_EDGES);
    found.extend(check_edges(sources, CORE, CORE_EDGES));
    found
}

fn check_edges(sources: &[Source], house: &str, table: Table) -> Vec<String> {
    let rooms: BTreeSet<&str> = sources.iter().filter_map(|source| room(source, house)).collect();
    let mut found = Vec::new();
    let mut used = BTreeSet::new();
    for source in sources {
        let Some(from) = room(source, house).filter(|room| !is_root(room)) else { continue };
        for (line, path) in &source.paths {
            let to = path[1].as_str();
            if path[0] != "crate" || to == from || !rooms.contains(to) || source.is_test(*line) {
                continue;
            }
            let allowed = table.iter().find(|(room, _)| *room == from).map_or(&[][..], |(_, allowed)| allowed);
            match allowed.iter().find(|allowed| begins(&path[1..], allowed)) {
                Some(allowed) => _ = used.insert((from, *allowed)),
                None => found.push(source.at(*line, format_args!("{from} must not know {}", path[1..].join("::")))),
            }
        }
    }
    let all = table.iter().flat_map(|(from, allowed)| allowed.iter().map(move |to| (*from, *to)));
    found
        .extend(all.filter(|edge| !used.contains(edge)).map(|(from, to)| format!("{from} may know {to}, and doesn't")));
    found
}

/// A dependency that nothing needs, that only tests need, or that a room has taken to without being said to.
pub fn misplaced_dependencies(sources: &[Source]) -> Vec<String> {
    let mut found = check_dependencies(sources, SHELL, SHELL_DEPENDENCIES);
    found.extend(check_dependencies(sources, CORE, CORE_DEPENDENCIES));
    found
}

fn check_dependencies(sources: &[Source], house: &str, table: Table) -> Vec<String> {
    let Some(manifest) = sources.iter().find(|source| source.path == format!("{house}Cargo.toml")) else {
        return vec![format!("{house}Cargo.toml is missing")];
    };
    let own = |source: &&Source| source.below(house).is_some_and(|rest| house == CORE || !rest.starts_with("core/"));
    let uses = |name: &str, counts: &dyn Fn(&Source, usize) -> bool| -> Vec<(&Source, usize)> {
        let name = name.replace('-', "_");
        let all = sources.iter().filter(own).flat_map(|source| source.paths.iter().map(move |path| (source, path)));
        let named = all.filter(|(source, (line, path))| path[0] == name && counts(source, *line));
        named.map(|(source, (line, _))| (source, *line)).collect()
    };
    let mut found = Vec::new();
    for (section, line, name) in dependencies(manifest) {
        let entry = table.iter().find(|(of, _)| *of == name).map(|(_, rooms)| *rooms);
        match (section, entry) {
            ("dependencies", None) => found.push(manifest.at(line, format_args!("{name}: which room is it for?"))),
            ("dependencies", Some(GENERATED)) => {}
            ("dependencies", Some(rooms)) => {
                let places = uses(name, &|source, line| room(source, house).is_some() && !source.is_test(line));
                let foreign = places.iter().filter(|(source, _)| {
                    rooms != EVERY_ROOM && room(source, house).is_none_or(|room| !rooms.contains(&room))
                });
                found
                    .extend(foreign.map(|(source, line)| source.at(*line, format_args!("{name} isn't for this room"))));
                let in_use: BTreeSet<_> = places.iter().filter_map(|(source, _)| room(source, house)).collect();
                let idle = if in_use.is_empty() { rooms } else { &[] };
                let idle = idle.iter().chain(rooms.iter().filter(|room| **room != "*" && !in_use.contains(**room)));
                let idle: BTreeSet<_> = idle.collect();
                found.extend(
                    idle.into_iter().map(|room| manifest.at(line, format_args!("{name}: {room} does not use it"))),
                );
            }
            ("build-dependencies", _) => {
                if uses(name, &|source, _| source.path.ends_with("build.rs")).is_empty() {
                    found.push(manifest.at(line, format_args!("{name}: the build script does not use it")));
                }
            }
            _ => {
                if uses(name, &Source::is_test).is_empty() {
                    found.push(manifest.at(line, format_args!("{name}: no test uses it")));
                }
            }
        }
    }
    found
}

/// Section, line and name of each dependency in a Cargo.toml.
fn dependencies(manifest: &Source) -> Vec<(&str, usize, &str)> {
    let mut section = "";
    let mut found = Vec::new();
    for (line, text) in numbered(&manifest.text) {
        if let Some(header) = text.strip_prefix('[') {
            section = header.trim_end_matches(']');
        }
        let entry = text.split_once('=').filter(|_| section.ends_with("dependencies"));
        if let Some((name, _)) = entry.filter(|(name, _)| name.starts_with(char::is_alphabetic)) {
            found.push((section, line, name.trim()));
        }
    }
    found
}

/// The room that a file belongs to.
fn room<'a>(source: &'a Source, house: &str) -> Option<&'a str> {
    source.below(house)?.strip_prefix("src/")?.strip_suffix(".rs")?.split('/').next()
}

fn is_root(room: &str) -> bool {
    room == "lib" || room == "main"
}

fn begins(path: &[String], with: &str) -> bool {
    let with: Vec<&str> = with.split("::").collect();
    path.len() >= with.len() && path.iter().zip(with).all(|(segment, wanted)| segment == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impure_core_is_found() {
        let core = |code: &str| impure(&[Source::new("agent/core/src/state.rs", code)]).len();
        assert_eq!(core("use std::collections::{BTreeMap, HashMap};"), 1);
        assert_eq!(core("fn f() { let now = std::time::Instant::now(); tokio::spawn(g()); }"), 2);
        assert_eq!(core("use std::time::Duration; // std::fs"), 0);
        assert!(impure(&[Source::new("agent/src/log.rs", "use std::fs;")]).is_empty());
    }

    #[test]
    fn a_room_that_knows_a_room_that_it_must_not_is_found() {
        const ALLOWED: Table = &[("node", &["log", "gate::files"])];
        let shell = |code: &str| {
            let files = [("node/apply", code), ("log", ""), ("gate/mod", "")];
            let files = files.map(|(path, text)| Source::new(format!("agent/src/{path}.rs"), text));
            check_edges(&files, SHELL, ALLOWED)
        };
        let needed = "use crate::log::Log; use crate::gate::files;";
        assert!(shell(&format!("{needed} use super::Node; use crate::error_chain;")).is_empty());
        assert_eq!(shell(&format!("{needed} use crate::gate::run;")).len(), 1);
        assert_eq!(shell(&format!("{needed} fn f() {{ super::super::gate::run() }}")).len(), 1);
        assert!(shell(&format!("{needed}\n#[cfg(test)]\nuse crate::gate::run;")).is_empty());
        assert_eq!(shell("use crate::log::Log;"), ["node may know gate::files, and doesn't"]);
    }

    #[test]
    fn a_dependency_in_the_wrong_place_is_found() {
        const FOR: Table = &[("raft", &["log"]), ("prost", GENERATED), ("serde", EVERY_ROOM)];
        let check = |manifest: &str, log: &str, store: &str| {
            let files = [
                ("Cargo.toml", manifest),
                ("src/log.rs", log),
                ("src/store.rs", store),
                ("core/src/a.rs", "use serde::De;"),
            ];
            check_dependencies(&files.map(|(path, text)| Source::new(format!("agent/{path}"), text)), SHELL, FOR)
        };
        let raft = "[dependencies]\nraft = \"0.7\"\nprost = { version = \"0.14\" }\n";
        assert!(check(raft, "use raft::Entry;", "").is_empty());
        assert_eq!(check(raft, "", ""), ["agent/Cargo.toml:2: raft: log does not use it"]);
        assert_eq!(check(raft, "#[cfg(test)]\nmod tests { use raft::Entry; }", "").len(), 1, "for tests only");
        assert_eq!(
            check(raft, "use raft::Entry;", "use raft::Entry;"),
            ["agent/src/store.rs:1: raft isn't for this room"]
        );
        assert_eq!(check("[dependencies]\nserde = \"1\"", "", "").len(), 1, "nobody uses it");
        assert_eq!(check("[dependencies]\nother = \"1\"", "", "").len(), 1, "nobody said what for");
        assert_eq!(check("[dev-dependencies]\ntempfile = \"3\"", "", "").len(), 1);
        assert!(
            check("[dev-dependencies]\ntempfile = \"3\"", "#[cfg(test)]\nfn f() { tempfile::tempdir() }", "")
                .is_empty()
        );
    }
}
