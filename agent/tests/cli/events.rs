//! What has happened, as a person and a program read it.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use blixard::api::proto::StatusReply;
use serde_json::Value;

use super::ask::Asked;
use super::told;

fn events(json: &str) -> Vec<Value> {
    json.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

fn words<'a>(event: &'a Value, fields: [&str; 3]) -> [&'a str; 3] {
    fields.map(|field| event[field].as_str().unwrap_or("-"))
}

/// Until the last start of one VM is told, too.
async fn runs(asked: &Asked, name: &str) {
    let instance = format!("{name}-0");
    let runs = |status: &StatusReply| status.instances.iter().any(|vm| vm.name == instance && vm.state == "running");
    asked.agent.sees("a running VM", runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_listed_oldest_first_all_of_them_or_those_of_a_vm_or_a_node() {
    let asked = Asked::start().await;
    asked.ok(&["apply", &asked.manifest(&[("web", ""), ("db", "")])]);
    for name in ["web", "db"] {
        runs(&asked, name).await;
    }
    let all = asked.ok(&["events"]);
    let after_when: Vec<_> = all.lines().map(|line| &line["2026-11-28 11:20:01Z  ".len()..]).collect();
    assert_eq!(after_when[0], "joined      alpha");
    assert!(after_when.contains(&"started     web-0 on alpha") && after_when.contains(&"started     db-0 on alpha"));
    let placed =
        after_when.iter().find(|line| line.starts_with("placed      web-0 on alpha: it was nowhere (generation 1, "));
    assert!(placed.is_some(), "{all}");
    let json = events(&asked.ok(&["events", "--json"]));
    assert_eq!(json.len(), all.lines().count());
    for (number, event) in (1..).zip(&json) {
        assert_eq!(event["number"].as_u64(), Some(number), "{event}");
        assert!(event["index"].as_u64() > Some(0) && event["at"].as_u64() > Some(1_700_000_000_000), "{event}");
    }
    assert_eq!(words(&json[0], ["kind", "node", "instance"]), ["joined", "alpha", "-"]);
    for vm in ["web", "web-0"] {
        let of_vm = events(&asked.ok(&["events", "--json", "--vm", vm]));
        let of_vm: Vec<_> = of_vm.iter().map(|event| words(event, ["kind", "instance", "node"])).collect();
        assert_eq!(of_vm, [["placed", "web-0", "alpha"], ["started", "web-0", "alpha"]]);
    }
    let of_node = json.iter().filter(|event| event["node"] == "alpha").count();
    assert_eq!(asked.ok(&["events", "--node", "alpha"]).lines().count(), of_node);
    assert_eq!(asked.ok(&["events", "--node", "alpha", "--vm", "db"]).lines().count(), 2);
    for nobody in [&["--vm", "we"], &["--node", "beta"]] {
        assert_eq!(asked.ok(&[&["events"], &nobody[..]].concat()), "");
    }
    let rest = asked.ok(&["events", "--json", "--stale", "--after", "3"]);
    assert_eq!(events(&rest), json[3..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_misses_nothing_and_hears_nothing_twice_though_the_agent_is_restarted() {
    let mut asked = Asked::start().await;
    asked.ok(&["apply", &asked.manifest(&[("web", "")])]);
    runs(&asked, "web").await;
    let mut follow = asked.command(&["events", "--follow", "--json"]);
    let mut child = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut heard = Vec::new();
    let mut hear = |what: [&str; 2]| {
        let is_it = |event: &Value| event["kind"] == what[0] && event["instance"] == what[1];
        while !heard.last().is_some_and(is_it) {
            let line = lines.next().unwrap_or_else(|| panic!("it ended before it told of {what:?}: {heard:?}"));
            heard.extend(events(&line));
        }
    };
    hear(["started", "web-0"]);
    asked.ok(&["apply", &asked.manifest(&[("db", "")])]);
    hear(["started", "db-0"]);
    asked.agent.stop().await;
    asked.agent = asked.host.start();
    asked.agent.is_healthy().await;
    asked.ok(&["apply", &asked.manifest(&[("again", "")])]);
    hear(["started", "again-0"]);
    let numbers: Vec<_> = heard.iter().map(|event| event["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    child.kill().unwrap();
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_through_a_pipe_that_is_closed_ends() {
    let asked = Asked::start().await;
    let mut follow = asked.command(&["events", "--follow"]);
    let mut child = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let first = BufReader::new(child.stdout.take().unwrap()).lines().next();
    assert!(first.unwrap().unwrap().ends_with("joined      alpha"));
    asked.ok(&["node", "cordon", "alpha"]);
    asked.ok(&["node", "uncordon", "alpha"]);
    let (code, _, err) = told(&child.wait_with_output().unwrap());
    assert_eq!((code, &*err), (0, ""));
}
