//! A disk without room, or with damaged data, under real agents: the one that has it says so and stops, and comes back with all
//! that it acknowledged.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use blixard::api::proto::{ListTasksRequest, RunTaskRequest, StatusReply};
use blixard::cli;
use rustix::process::{Resource, Rlimit, WaitId, WaitIdOptions, geteuid, prlimit, waitid};

use crate::agreement::agree;
use crate::member::{MAX_WAIT, Member, POLL};
use crate::process::Process;
use crate::start;
use crate::wrapper::wrap;
use crate::writer::Writers;

/// The exit status of an agent that can't go on from its disk.
const DISK: i32 = 74;
/// How long an agent says why it has stopped, where nothing changes.
const PAUSE: Duration = Duration::from_secs(30);
const CLIENTS: u32 = 4;

/// Starts a server that isn't killed by writing beyond a limit, but told; after doing this in a shell.
fn start_after(member: &mut Member, script: &str) {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("trap '' XFSZ; {script}; exec \"$@\"")).arg("sh");
    member.process = Some(Process::start(wrap(shell, &member.command()), &member.log()));
}

fn start_limitable(member: &mut Member) {
    start_after(member, "true");
}

/// From now on no file of this server can grow beyond so many bytes.
fn limit(member: &Member, bytes: u64) {
    let pid = member.process.as_ref().expect("it runs").pid();
    let limit = Rlimit { current: Some(bytes), maximum: None };
    prlimit(Some(pid), Resource::Fsize, limit).expect("a child may be limited");
}

/// The newest segment of a server's log.
fn newest_segment(member: &Member) -> PathBuf {
    let files = fs::read_dir(member.dir.join("data/raft/log")).expect("it has a log");
    let segments = files.map(|file| file.expect("it is there").path());
    let newest = segments.filter(|path| path.extension().is_some_and(|end| end == "log")).max();
    newest.expect("the log has a segment")
}

/// Waits until the server's agent has stopped; why, as it tells whoever asks for its status.
async fn told(member: &Member) -> String {
    let (begun, mut polls) = (Instant::now(), tokio::time::interval(POLL));
    loop {
        polls.tick().await;
        match member.status().await {
            Err(told) if told.contains("agent has stopped") => return told,
            seen => assert!(begun.elapsed() < MAX_WAIT, "{} goes on; last seen: {seen:?}", member.name),
        }
    }
}

/// Waits until the server's agent has stopped for its disk, and says why; to the program, too, and in its journal.
async fn stopped(member: &Member, why: &str) -> String {
    let told = told(member).await;
    let data = member.dir.join("data");
    assert!(told.contains(why) && told.contains(&data.display().to_string()), "{told}");
    assert!(told.contains("works") && told.contains("has room"), "{told}");
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_blixard"))
        .args(["status", "--socket"])
        .arg(member.dir.join("run/api.sock"))
        .output()
        .expect("the program can be started");
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!((status.code(), &*stdout, stderr.lines().count()), (Some(2), &b""[..], 1), "{stderr}");
    assert!(stderr.contains(&told), "{stderr}");
    let journal = fs::read_to_string(member.log()).expect("it writes a log");
    let said =
        journal.lines().rfind(|line| line.contains("ERROR") && line.contains("the agent ends: ") && line.contains(why));
    assert!(said.is_some_and(|line| line.contains("has room")), "{journal}");
    told
}

/// Waits until the server has ended with nobody's help, long before it does where nothing changes.
async fn ends(member: &mut Member) {
    let (begun, mut polls) = (Instant::now(), tokio::time::interval(POLL));
    let pid = member.process.as_ref().expect("it says why it has stopped").pid();
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while waitid(WaitId::Pid(pid), look).expect("a child can be looked at").is_none() {
        assert!(begun.elapsed() < PAUSE / 2, "{} still only says why it has stopped", member.name);
        polls.tick().await;
    }
    end(member);
}

/// Asks an agent that has stopped to end, too.
fn end(member: &mut Member) {
    let ended = member.process.take().expect("it says why it has stopped").stop();
    assert_eq!(ended.code(), Some(DISK), "{}: {ended}", member.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_write_says_so_and_stops_while_the_others_go_on() {
    let place = tempfile::tempdir().unwrap();
    let mut members = Member::write(place.path(), ["alpha", "beta", "gamma"]);
    let identity = Member::found(&mut members, start_limitable).await;
    let mut writers = Writers::start(CLIENTS, &members, &identity);
    writers.acknowledge(100).await;
    let has_leader = |status: &StatusReply| status.cluster.as_ref().is_some_and(|cluster| !cluster.leader.is_empty());
    let leader = members[0].sees("a leader", has_leader).await.cluster.expect("it was looked at just now").leader;
    let full = members.iter().position(|member| member.name == leader).expect("it is one of them");

    let len = fs::metadata(newest_segment(&members[full])).unwrap().len();
    limit(&members[full], len + 10_000);
    stopped(&members[full], "File too large").await;
    writers.acknowledge(100).await;

    // Nobody has seen to it yet: it says so again, and what it has stays as it is.
    end(&mut members[full]);
    start_after(&mut members[full], "ulimit -S -f 16");
    stopped(&members[full], "File too large").await;
    end(&mut members[full]);

    start(&mut members[full]);
    members[full].sees("a healthy cluster", |status| status.problems.is_empty()).await;
    writers.acknowledge(100).await;
    let (expected, _) = writers.end().await;
    agree(&members, &expected).await;
}

/// A file system of its own in memory, until it is dropped.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path, mib: u32) -> Self {
        fs::create_dir_all(path).unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"], path);
        Self(path.to_owned())
    }

    fn remount(&self, how: &str) {
        mount(&["-o", &format!("remount,{how}")], &self.0);
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = File::create(self.0.join("filler")).unwrap();
        for bytes in [64 << 10, 1] {
            while file.write_all(&vec![7; bytes]).is_ok() {}
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn mount(arguments: &[&str], path: &Path) {
    let mounted = Command::new("mount").args(arguments).arg(path).status().expect("mount is installed");
    assert!(mounted.success(), "mount {arguments:?} {}: {mounted}", path.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_or_read_only_disk_stops_an_agent_until_there_is_room_and_it_is_started_again() {
    if !geteuid().is_root() {
        eprintln!("not run: only root can mount a small file system");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mut members = Member::write(place.path(), ["alpha"]);
    let disk = Small::mount(&members[0].dir.join("data"), 16);
    let identity = Member::found(&mut members, start).await;
    let mut writers = Writers::start(CLIENTS, &members, &identity);
    let [alpha] = &mut members;
    for round in 0..3 {
        writers.acknowledge(100).await;
        disk.fill();
        stopped(alpha, "No space left on device").await;
        let acknowledged = writers.acknowledged();
        end(alpha);
        start(alpha);
        let told = stopped(alpha, "No space left on device").await;
        assert!(told.contains("/data/raft/log/"), "the log opens first: {told}");
        end(alpha);
        assert_eq!(writers.acknowledged(), acknowledged, "round {round}: something was acknowledged meanwhile");
        disk.make_room();
        start(alpha);
    }
    writers.acknowledge(100).await;
    let (expected, _) = writers.end().await;
    let stopped_well = alpha.process.take().expect("it runs").stop();
    assert!(stopped_well.success(), "{stopped_well}");

    disk.remount("ro");
    start(alpha);
    stopped(alpha, "Read-only file system").await;
    end(alpha);
    disk.remount("rw");
    start(alpha);
    agree(&members, &expected).await;
    members[0].process = None;
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_a_full_disk_has_stopped_ends_as_soon_as_there_is_room_again() {
    if !geteuid().is_root() {
        eprintln!("not run: only root can mount a small file system");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mut members = Member::write(place.path(), ["alpha"]);
    let disk = Small::mount(&members[0].dir.join("data"), 64);
    let identity = Member::found(&mut members, start).await;
    let mut writers = Writers::start(CLIENTS, &members, &identity);
    writers.acknowledge(100).await;
    disk.fill();
    stopped(&members[0], "No space left on device").await;

    disk.make_room();
    ends(&mut members[0]).await;
    start(&mut members[0]);
    writers.acknowledge(100).await;
    let (expected, _) = writers.end().await;
    agree(&members, &expected).await;
    members[0].process = None;
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_room_for_a_snapshot_says_so_and_stops_and_gets_it_once_there_is_room() {
    let place = tempfile::tempdir().unwrap();
    let mut members = Member::write(place.path(), ["alpha", "beta", "gamma"]);
    Member::found(&mut members, start_limitable).await;
    members[2].process = None;
    let first = |member: &Member| member.dir.join("data/raft/log/0000000000000001.log");
    let mut client = cli::connect(&members[0].dir.join("run/api.sock")).await.unwrap();
    // Tasks that no host has room for, each almost as large as one may be.
    let mut tasks = 0;
    while first(&members[0]).exists() || first(&members[1]).exists() {
        let command = vec!["x".repeat(60_000)];
        client.run_task(RunTaskRequest { command, cpus: 1_000_000, memory_mib: 1 }).await.unwrap();
        tasks += 1;
        assert!(tasks < 1_000, "the log is never cut");
    }
    let incoming = members[2].dir.join("data/raft/state.redb.incoming");
    for _ in 0..2 {
        let len = fs::metadata(members[2].dir.join("data/raft/state.redb")).unwrap().len();
        start_limitable(&mut members[2]);
        limit(&members[2], len + 100_000);
        let told = stopped(&members[2], "File too large").await;
        assert!(told.contains("snapshot"), "{told}");
        assert!(incoming.exists(), "there is what it could keep of it");
        end(&mut members[2]);
    }
    // Then it comes in, and its rows find no room in their tables.
    let snapshot = members[2].dir.join("data/raft/state.redb.snapshot");
    for _ in 0..2 {
        start_limitable(&mut members[2]);
        limit(&members[2], u64::try_from(tasks).unwrap() * 60_000 + 200_000);
        let told = stopped(&members[2], "File too large").await;
        assert!(told.contains("state.redb") && snapshot.exists(), "{told}");
        end(&mut members[2]);
    }
    start(&mut members[2]);
    let opened = members[2].sees("a healthy node", |status| status.cluster.as_ref().is_some_and(|all| all.confirmed));
    opened.await;
    let mut client = cli::connect(&members[2].dir.join("run/api.sock")).await.unwrap();
    let found = client.list_tasks(ListTasksRequest::default()).await.unwrap().into_inner().tasks.len();
    assert_eq!((found, incoming.exists()), (tasks, false));
    members[2].process.take().expect("it runs").stop();
    assert!(!snapshot.exists(), "an agent that ends well leaves one store");

    // What another one has left is gone as soon as the agent has opened its data.
    fs::write(&incoming, "half of a snapshot").unwrap();
    start(&mut members[2]);
    members[2].sees("a node", |_| true).await;
    assert!(!incoming.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_damaged_log_or_store_says_which_and_uses_neither() {
    let place = tempfile::tempdir().unwrap();
    let mut members = Member::write(place.path(), ["alpha"]);
    Member::found(&mut members, start).await;
    let [alpha] = &mut members;
    alpha.process = None;
    for path in [newest_segment(alpha), alpha.dir.join("data/raft/state.redb")] {
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        let first_record = 64;
        damaged[first_record] ^= 1;
        fs::write(&path, &damaged).unwrap();
        start(alpha);
        let told = told(alpha).await;
        assert!(told.contains(&path.display().to_string()) && told.contains("damaged"), "{told}");
        assert!(told.contains("move the data directory away"), "{told}");
        end(alpha);
        assert_eq!(fs::read(&path).unwrap(), damaged, "{} is left as it is", path.display());
        fs::write(&path, &whole).unwrap();
    }
    start(alpha);
    alpha.sees("a healthy cluster", |status| status.problems.is_empty()).await;
}
