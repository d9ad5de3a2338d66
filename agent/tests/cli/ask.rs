//! The verbs that ask an agent.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;

use blixard_core::types::Exit;

use super::support::{Agent, Host, manifest, runner, wait_for};
use super::{blixard, refusal, run, told, write};

/// A cluster of one, in this process; the program is another.
pub struct Asked {
    pub host: Host,
    pub agent: Agent,
    socket: String,
}

impl Asked {
    pub async fn start() -> Self {
        let [host] = Host::blank(["alpha"]);
        let agent = host.start();
        agent.is_healthy().await;
        let socket = host.dir.path().join("run/api.sock").display().to_string();
        Self { host, agent, socket }
    }

    /// The agent is another one, after this was done to the host.
    pub async fn restart(self, meanwhile: impl FnOnce(&Host)) -> Self {
        let Self { host, agent, socket } = self;
        agent.stop().await;
        meanwhile(&host);
        let agent = host.start();
        agent.sees("a leader", |status| status.cluster.as_ref().is_some_and(|cluster| cluster.quorum)).await;
        Self { host, agent, socket }
    }

    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        told(&self.command(arguments).output().unwrap())
    }

    pub fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = blixard();
        let (own, after) = arguments.split_at(arguments.iter().position(|a| *a == "--").unwrap_or(arguments.len()));
        command.args(own).args(["--socket", &self.socket]).args(after);
        command
    }

    /// What it prints when all goes well.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.run(arguments);
        assert_eq!((code, &*err), (0, ""), "{arguments:?}: {out}");
        assert!(!out.contains('\u{1b}'), "no colours where no terminal is: {out}");
        assert!(out.lines().all(|line| line.trim_end() == line), "{out}");
        out
    }

    pub fn fails(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.run(arguments);
        assert_eq!((code, &*out), (1, ""), "{arguments:?}: {err}");
        assert!(err.starts_with("error: ") && err.lines().count() == 1, "{err}");
        err
    }

    pub fn manifest(&self, vms: &[(&str, &str)]) -> String {
        write(self.host.dir.path(), "applied.json", manifest(vms))
    }
}

/// The words of the line that starts with this one.
pub fn row<'a>(text: &'a str, first: &str) -> Vec<&'a str> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(first));
    line.unwrap_or_else(|| panic!("no {first} in {text}")).split_whitespace().collect()
}

#[test]
fn without_an_agent_every_verb_ends_with_2_and_one_line_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "manifest.json", manifest(&[]));
    let stale = dir.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    for socket in ["/nowhere/api.sock", stale.to_str().unwrap()] {
        for verb in [
            &["status"] as &[_],
            &["status", "--json"],
            &["status", "--watch"],
            &["events"],
            &["events", "--follow"],
            &["node", "ls"],
            &["node", "cordon", "alpha"],
            &["node", "uncordon", "alpha"],
            &["node", "drain", "alpha"],
            &["node", "remove", "alpha"],
            &["node", "replace", "alpha"],
            &["node", "confirm-dead", "alpha"],
            &["cluster", "resume"],
            &["vm", "show", "web"],
            &["vm", "create", "web", "--runner", &runner("web-0"), "--vcpus", "1", "--memory", "1"],
            &["vm", "start", "web"],
            &["vm", "stop", "web"],
            &["vm", "move", "web-0", "--to", "alpha"],
            &["vm", "rm", "web"],
            &["apply", &file],
            &["plan", &file],
            &["explain", "web"],
            &["manifest", "ls"],
            &["task", "ls"],
        ] {
            let told = refusal(&[verb, &["--socket", socket]].concat(), 2);
            assert_eq!(told.lines().count(), 1, "{told}");
            assert!(told.contains(socket) && told.contains("systemctl start blixard"), "{told}");
        }
    }
}

#[test]
fn of_an_agent_that_ends_before_it_answers_the_outcome_is_said_to_be_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let ends = std::thread::spawn(move || {
        // The first connection only shows that somebody listens.
        let asks = |mut asked: UnixStream| asked.read_exact(&mut [0; 24]).is_ok();
        assert!(listener.incoming().take(2).any(|asked| asks(asked.unwrap())));
    });
    let (code, out, err) = run(&["vm", "rm", "web", "--socket", socket.to_str().unwrap()]);
    ends.join().unwrap();
    assert_eq!((code, &*out), (2, ""), "{err}");
    assert!(err.contains("ended before it answered") && err.contains("unknown"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_no_member_yet_is_unreachable_and_says_for_what_it_waits() {
    let [_alpha, beta] = Host::blank(["alpha", "beta"]);
    let agent = beta.start();
    let _ = agent.client().await;
    let socket = beta.dir.path().join("run/api.sock").display().to_string();
    wait_for("what it waits for", async || {
        let told = refusal(&["status", "--socket", &socket], 2);
        if told.contains("not a member yet") && told.contains("alpha") { Ok(()) } else { Err(told) }
    })
    .await;
}

#[test]
fn a_socket_that_one_may_not_open_says_who_may() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("blixard");
    // Not by this process: while it writes, a test beside this one may start a program, which has the file open for writing
    // too until it runs, and what is open for writing can't be run ("Text file busy").
    let copied = std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_blixard")).arg(&program).status();
    assert!(copied.unwrap().success());
    let socket = dir.path().join("api.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let open = |path: &Path, mode| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(dir.path(), 0o755);
    open(&program, 0o755);
    open(&socket, 0);
    let mut command = std::process::Command::new(&program);
    if rustix::process::geteuid().is_root() {
        // Root may open everything, so it is asked as somebody else.
        use std::os::unix::process::CommandExt as _;
        command.uid(65534).gid(65534);
    }
    let output = command.arg("status").arg("--socket").arg(&socket).output().unwrap();
    let (code, out, err) = told(&output);
    assert_eq!((code, &*out), (2, ""), "{err}");
    assert!(err.contains("be root, or a member of the group blixard") && err.lines().count() == 1, "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_0_while_all_is_well_and_1_with_the_problem_when_it_is_not() {
    let asked = Asked::start().await;
    asked.ok(&["apply", &asked.manifest(&[("web", "")])]);
    asked.agent.is_healthy().await;
    let out = asked.ok(&["status"]);
    assert!(out.starts_with("cluster ") && out.contains("healthy") && out.contains("leader alpha"), "{out}");
    assert_eq!(row(&out, "web-0")[1..3], ["running", "alpha"]);
    assert_eq!(row(&out, "alpha")[1..3], ["leader", "alive"]);

    asked.ok(&["apply", &asked.manifest(&[("big", r#", "memoryOverheadMiB": 8000"#), ("web", "")])]);
    for verb in [&["status"] as &[_], &["status", "--json"]] {
        let (code, out, err) = asked.run(verb);
        assert_eq!((code, &*err), (1, ""), "{out}");
        assert!(out.contains("big-0 is pending: no node will do: alpha: "), "{out}");
        assert!(out.contains("8100 MiB"), "{out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_vms_are_listed_and_shown_and_unknown_ones_refused() {
    let asked = Asked::start().await;
    asked.ok(&["apply", &asked.manifest(&[("web", r#", "diskMiB": 7"#)])]);
    asked.agent.is_healthy().await;
    assert_eq!(row(&asked.ok(&["node", "ls"]), "alpha")[1..3], ["leader", "alive"]);
    let node = asked.ok(&["node", "show", "alpha"]);
    assert_eq!(row(&node, "labels"), ["labels", "zone=a"]);
    assert_eq!(row(&node, "hypervisors"), ["hypervisors", "qemu"]);
    assert!(node.contains("web-0") && node.contains("3/4"), "{node}");
    assert_eq!(row(&asked.ok(&["vm", "ls"]), "web-0")[1..3], ["running", "alpha"]);
    for name in ["web", "web-0"] {
        let vm = asked.ok(&["vm", "show", name]);
        assert!(vm.contains(&runner("web-0")) && vm.contains("1 CPU, 228 MiB memory, 7 MiB disk"), "{vm}");
    }
    for (verb, hint) in [
        (["node", "show", "beta"], "there is no node \"beta\": see `blixard node ls`"),
        (["vm", "show", "web-1"], "there is no vm \"web-1\": see `blixard vm ls`"),
    ] {
        let told = asked.fails(&verb);
        assert!(told.contains(hint), "{told}");
    }
    assert!(asked.fails(&["explain", "nope"]).contains("\"nope\": see `blixard vm ls`"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_server_is_neither_removed_nor_replaced() {
    let asked = Asked::start().await;
    for verb in ["remove", "replace"] {
        let told = asked.fails(&["node", verb, "alpha"]);
        assert!(told.contains("alpha is the only server"), "{told}");
        let told = asked.fails(&["node", verb, "beta"]);
        assert!(told.contains("there is no node beta: see `blixard node ls`"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_reads_may_be_asked_for_what_the_host_knows_without_the_others() {
    let asked = Asked::start().await;
    asked.ok(&["apply", &asked.manifest(&[("web", "")])]);
    asked.agent.is_healthy().await;
    for verb in [
        &["node", "ls"] as &[_],
        &["node", "show", "alpha"],
        &["vm", "ls"],
        &["vm", "show", "web"],
        &["explain", "web"],
        &["manifest", "ls"],
        &["task", "ls"],
    ] {
        asked.ok(&[verb, &["--stale"]].concat());
    }
    let confirmed = |arguments: &[&str]| {
        let status: serde_json::Value = serde_json::from_str(&asked.ok(arguments)).unwrap();
        status["cluster"]["confirmed"].as_bool().unwrap()
    };
    assert!(confirmed(&["status", "--json"]));
    assert!(!confirmed(&["status", "--json", "--stale"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_what_apply_then_does_and_explain_says_why() {
    let asked = Asked::start().await;
    asked.ok(&["apply", &asked.manifest(&[("web", ""), ("db", "")])]);
    asked.agent.is_healthy().await;
    let next = asked.manifest(&[("web", ""), ("wide", r#", "requires": { "zone": "b" }"#)]);
    let plan = asked.ok(&["plan", &next]);
    assert_eq!((row(&plan, "stop")[1], row(&plan, "start")[1]), ("db-0", "wide-0"));
    assert!(plan.ends_with("2 changed, 1 as they are\n"), "{plan}");
    assert!(asked.ok(&["vm", "ls"]).contains("db-0"), "a plan changes nothing");

    let out = asked.ok(&["apply", &next]);
    assert!(out.starts_with("manifest ") && out.ends_with(" is the head now\n"), "{out}");
    assert!(asked.ok(&["apply", &next]).ends_with("was the head already\n"));
    assert!(asked.ok(&["plan", &next]).ends_with("0 changed, 2 as they are\n"));
    let key = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
    let nodes = format!(r#"{{ "nodes": {{ "beta": {{ "publicKey": "{key}" }} }}, "#);
    let settings = std::fs::read_to_string(&next).unwrap().replacen('{', &nodes, 1);
    let settings = settings.replace(r#""cluster": {"#, r#""cluster": { "servers": 5"#);
    let settings = write(asked.host.dir.path(), "settings.json", settings);
    let lines = "change the cluster: servers 3 → 5\nadd the key of beta\n0 changed, 2 as they are\n";
    assert_eq!(asked.ok(&["plan", &settings]), lines);
    let why = asked.ok(&["explain", "web"]);
    assert!(why.starts_with("web-0 is running on alpha"), "{why}");
    assert!(why.contains("\n  manual failover, since there are fewer than 3 servers (1): "), "{why}");
    assert!(asked.fails(&["node", "confirm-dead", "alpha"]).contains("alpha answers, so it isn't dead"));
    assert!(asked.fails(&["cluster", "resume"]).contains("takeover is not frozen"));
    let why = asked.ok(&["explain", "wide-0"]);
    assert!(why.starts_with("wide-0 is pending\n") && why.contains("alpha: ") && why.contains("zone"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_are_listed_accepted_and_rolled_back() {
    let asked = Asked::start().await;
    assert!(asked.fails(&["manifest", "rollback"]).contains("no earlier manifest"));
    assert!(asked.fails(&["manifest", "accept"]).contains("no manifest is held"));
    for vm in ["one", "two"] {
        asked.ok(&["apply", &asked.manifest(&[(vm, "")])]);
    }
    let list = asked.ok(&["manifest", "ls"]);
    let states: Vec<_> = list.lines().map(|line| line.contains("was head")).collect();
    assert_eq!(states, [false, true, false], "{list}");
    assert!(asked.ok(&["manifest", "rollback"]).ends_with("is the head now\n"));
    assert_eq!(asked.ok(&["manifest", "ls"]).lines().count(), 4);
    asked.agent.sees("the first again", |status| status.instances.iter().any(|vm| vm.vm == "one")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_submitted_as_it_is_and_its_exit_status_listed() {
    let asked = Asked::start().await;
    let name = asked.ok(&["task", "run", "--cpu", "2", "--memory", "64", "--", "sh", "-c", "exit 7"]);
    let name = name.trim();
    wait_for("the task's unit", async || {
        let tasks = asked.host.units.held().observed.tasks.clone();
        let installed = tasks.values().find_map(|task| task.installed.clone()).ok_or("no task")?;
        assert_eq!(installed.command, ["sh", "-c", "exit 7"]);
        assert_eq!((installed.cpus, installed.memory_max_mib, &*installed.task.to_string()), (2, 64, name));
        Ok(())
    })
    .await;
    asked.host.units.change(|held| {
        let task = held.observed.tasks.values_mut().next().unwrap();
        task.phase = blixard_core::unit::UnitPhase::Inactive;
        let generation = blixard_core::types::Generation(0);
        task.last_exit = Some(blixard_core::unit::ExitRecord { generation, exit: Exit::Exited(7) });
    });
    wait_for("its result", async || {
        let list = asked.ok(&["task", "ls"]);
        let row = row(&list, name);
        if row[1] == "failed" && list.contains("exit status 7") { Ok(()) } else { Err(list) }
    })
    .await;
    for wrong in [&["task", "run", "--memory", "64"] as &[_], &["task", "run", "--memory", "lots", "--", "true"]] {
        assert_eq!(run(wrong).0, 2, "clap refuses what is no command line");
    }
    assert!(asked.fails(&["task", "run", "--memory", "0", "--", "true"]).contains("at least 1 CPU and 1 MiB"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_wrong_or_of_fifty_megabytes_is_refused_before_anything_is_done() {
    let asked = Asked::start().await;
    let large = asked.host.dir.path().join("large.json");
    std::fs::File::create(&large).unwrap().set_len(50 << 20).unwrap();
    let wrong = asked.manifest(&[("web", r#", "colour": "red""#)]);
    for verb in ["apply", "plan"] {
        assert!(asked.fails(&[verb, large.to_str().unwrap()]).contains("52428800 bytes"));
        assert!(asked.fails(&[verb, &wrong]).contains("vms.web.colour"));
        assert!(asked.fails(&[verb, "/nowhere.json"]).contains("/nowhere.json"));
    }
    assert_eq!(asked.ok(&["manifest", "ls"]).lines().count(), 1, "only the header");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let asked = Asked::start().await;
    for verb in [&["status"] as &[_], &["node", "ls"]] {
        let mut child = asked.command(verb).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let (_, _, err) = told(&child.wait_with_output().unwrap());
        assert_eq!(err, "");
    }
    // One that watches ends as well, at the first thing that it can't print.
    let mut child =
        asked.command(&["status", "--watch"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 8]).unwrap();
    drop(out);
    let mut count = 0;
    wait_for("the end of the watch", async || {
        count += 1;
        asked.ok(&["apply", &asked.manifest(&[(&format!("vm-{count}"), "")])]);
        child.try_wait().unwrap().map(|_| ()).ok_or_else(|| format!("it runs after {count} changes"))
    })
    .await;
    assert_eq!(told(&child.wait_with_output().unwrap()).2, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_prints_each_change_and_ends_with_the_agent() {
    let asked = Asked::start().await;
    let mut watch = asked.command(&["status", "--watch", "--json"]);
    let mut child = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains(r#""vms":[]"#));
    asked.ok(&["apply", &asked.manifest(&[("web", "")])]);
    let running = lines.by_ref().map(Result::unwrap).find(|line| line.contains(r#""state":"running""#));
    assert!(running.is_some(), "it ended before the VM ran");
    asked.agent.stop().await;
    let (code, _, err) = told(&child.wait_with_output().unwrap());
    assert!(code == 2 && err.lines().count() == 1, "{code}: {err}");
}
