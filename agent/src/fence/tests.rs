use std::ffi::OsString;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use blixard_core::fence::{MAX_ALLOWED, Stage, Status};
use blixard_core::types::{Generation, InstanceId, LeaseTerms, NodeEpoch, Nonce};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, connect, recv, send, socket};
use rustix::process::{Pid, getpid};

use super::*;

const MAX_WAIT: Duration = Duration::from_secs(30);
const EPOCH: NodeEpoch = NodeEpoch(1);
const GENERATION: Generation = Generation(3);

fn at(ms: u64) -> BootTime {
    BootTime(ms * 1_000_000)
}

fn web() -> InstanceId {
    "web-0".parse().unwrap()
}

/// What a watchdog was told, and what it can't do.
#[derive(Debug, Default)]
struct Told {
    is_open: bool,
    timeout: Option<u32>,
    pets: u32,
    shortest: u32,
}

#[derive(Clone, Debug, Default)]
struct FakeWatchdog(Arc<Mutex<Told>>);

impl Watchdog for FakeWatchdog {
    fn open(&mut self) -> Result<(), Unable> {
        self.0.lock().unwrap().is_open = true;
        Ok(())
    }

    fn set_timeout(&mut self, seconds: u32) -> Result<(), Unable> {
        let mut told = self.0.lock().unwrap();
        if seconds < told.shortest {
            return Err(Unable::Watchdog { device: "fake".into(), reason: format!("not {seconds} s") });
        }
        told.timeout = Some(seconds);
        Ok(())
    }

    fn pet(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().pets += 1;
        Ok(())
    }

    fn disarm(&mut self) {
        self.0.lock().unwrap().is_open = false;
    }
}

/// A tree of control groups, as far as a fence looks at it.
struct Groups(tempfile::TempDir);

impl Groups {
    fn new() -> Self {
        let groups = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(groups.slice()).unwrap();
        fs::write(groups.slice().join("cgroup.kill"), "").unwrap();
        populate(&groups.slice(), false);
        groups
    }

    fn slice(&self) -> PathBuf {
        self.0.path().join("blixard.slice/blixard-fenced.slice")
    }

    /// These processes are in web-0's unit, or none.
    fn run(&self, processes: &[Pid]) {
        let unit = self.slice().join("blixard-auto@web-0.service");
        for group in [&self.slice(), &unit] {
            populate(group, !processes.is_empty());
        }
        let lines: Vec<_> = processes.iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
        fs::write(unit.join("cgroup.procs"), lines.join("\n")).unwrap();
    }

    fn was_killed(&self) -> bool {
        let kill = self.slice().join("cgroup.kill");
        let was_killed = fs::read_to_string(&kill).unwrap() == "1";
        fs::write(kill, "").unwrap();
        was_killed
    }
}

fn populate(group: &Path, is_populated: bool) {
    fs::create_dir_all(group).unwrap();
    let events = format!("populated {}\nfrozen 0\n", u8::from(is_populated));
    fs::write(group.join("cgroup.events"), events).unwrap();
}

/// A fence with its control groups, its watchdog and PID 1, whose clock is the test's.
struct Host {
    groups: Groups,
    watchdog: FakeWatchdog,
    systemd: UnixDatagram,
    process: Process,
}

impl Host {
    fn new() -> Self {
        let groups = Groups::new();
        let notify = groups.0.path().join("notify");
        let systemd = UnixDatagram::bind(&notify).unwrap();
        systemd.set_nonblocking(true).unwrap();
        let watchdog = FakeWatchdog::default();
        let process = Process::new(
            Slice::below(groups.0.path()),
            Box::new(watchdog.clone()),
            Systemd::at(Some(OsString::from(notify)), Box::new(io::sink())),
            None,
        );
        Self { groups, watchdog, systemd, process }
    }

    /// One that is armed with the fast profile, holds a lease until 5 s, and runs web-0.
    fn running() -> Self {
        let mut host = Self::new();
        let nonce = host.clear(0);
        assert_eq!(host.arm(0, nonce), Reply::Done);
        assert_eq!(host.ask(0, &Request::Renewed { epoch: EPOCH, sent: at(0) }), Reply::Done);
        let allow = Request::Allow { epoch: EPOCH, instance: web(), generation: GENERATION };
        assert_eq!(host.ask(0, &allow), Reply::Done);
        host.groups.run(&[getpid()]);
        assert_eq!(host.start(0), Reply::Done);
        host.told();
        host
    }

    fn clear(&mut self, ms: u64) -> Nonce {
        self.process.turn(at(ms));
        self.process.turn(at(ms));
        match self.stage(ms) {
            Stage::Idle { nonce } => nonce,
            stage => panic!("{stage:?}"),
        }
    }

    fn ask(&mut self, ms: u64, request: &Request) -> Reply {
        self.process.answer(at(ms), request, getpid())
    }

    fn arm(&mut self, ms: u64, nonce: Nonce) -> Reply {
        self.ask(ms, &Request::Arm { nonce, epoch: EPOCH, terms: LeaseTerms::FAST })
    }

    fn start(&mut self, ms: u64) -> Reply {
        self.ask(ms, &Request::Start { instance: web(), generation: GENERATION })
    }

    fn stage(&mut self, ms: u64) -> Stage {
        match self.ask(ms, &Request::Status) {
            Reply::Status(status) => status.stage,
            reply => panic!("{reply:?}"),
        }
    }

    fn pets(&self) -> u32 {
        self.watchdog.0.lock().unwrap().pets
    }

    /// What PID 1 was told since.
    fn told(&self) -> String {
        let mut told = String::new();
        let mut message = [0; 4096];
        while let Ok(length) = self.systemd.recv(&mut message) {
            told.push_str(std::str::from_utf8(&message[..length]).unwrap());
        }
        told
    }
}

#[test]
fn what_runs_when_it_begins_is_killed_before_anything_else() {
    let mut host = Host::new();
    host.groups.run(&[getpid()]);
    host.process.turn(at(0));
    assert!(host.groups.was_killed());
    assert_eq!(host.stage(0), Stage::Clearing);
    assert!(!host.watchdog.0.lock().unwrap().is_open, "one that an earlier fence has left goes on counting");
    assert!(!host.told().contains("READY=1"));
    host.groups.run(&[]);
    host.clear(20);
    assert!(host.watchdog.0.lock().unwrap().is_open);
    assert!(host.told().contains("READY=1"));
}

#[test]
fn each_nonce_is_another() {
    let (mut host, mut other) = (Host::new(), Host::new());
    assert_ne!(host.clear(0), other.clear(0));
}

#[test]
fn only_a_process_of_the_unit_starts_it() {
    let mut host = Host::running();
    let start = Request::Start { instance: web(), generation: GENERATION };
    let stranger = Pid::from_raw(1).unwrap();
    assert_eq!(host.process.answer(at(0), &start, stranger), Reply::Refused(Refusal::Outside));
    host.groups.run(&[]);
    assert_eq!(host.start(0), Reply::Refused(Refusal::Outside));
}

#[test]
fn a_stop_is_confirmed_once_the_unit_is_empty_or_gone() {
    let mut host = Host::running();
    let stop = Request::Stop { instance: web(), generation: GENERATION };
    assert_eq!(host.ask(0, &stop), Reply::Refused(Refusal::Runs));
    let unit = host.groups.slice().join("blixard-auto@web-0.service");
    fs::write(unit.join("cgroup.events"), "").unwrap();
    assert_eq!(host.ask(0, &stop), Reply::Refused(Refusal::Runs), "what can't be read isn't empty");
    fs::remove_file(unit.join("cgroup.events")).unwrap();
    assert_eq!(host.ask(0, &stop), Reply::Refused(Refusal::Runs));
    fs::remove_dir_all(unit).unwrap();
    assert_eq!(host.ask(0, &stop), Reply::Done);
}

#[test]
fn at_the_deadline_the_whole_slice_is_killed() {
    let mut host = Host::running();
    assert!(host.process.turn(at(4_999)).is_some() && !host.groups.was_killed());
    host.process.turn(at(5_000));
    assert!(host.groups.was_killed());
    host.groups.run(&[]);
    host.clear(5_010);
    assert!(!host.groups.was_killed());
    fs::remove_dir_all(host.groups.slice()).unwrap();
    host.process.turn(at(6_000));
    host.clear(6_000);
}

#[test]
fn a_host_that_wakes_after_the_deadline_kills_before_it_answers() {
    let mut host = Host::running();
    assert_eq!(host.start(3_600_000), Reply::Refused(Refusal::NotArmed));
    host.process.turn(at(3_600_000));
    assert!(host.groups.was_killed());
}

#[test]
fn what_does_not_die_has_the_device_run_out() {
    let mut host = Host::running();
    host.process.turn(at(5_000));
    let pets = host.pets();
    assert!(pets > 0);
    host.process.turn(at(5_490));
    assert_eq!(host.pets(), pets + 1, "it is given half a second");
    for ms in [5_500, 5_600, 9_000] {
        host.process.turn(at(ms));
    }
    assert_eq!(host.pets(), pets + 1);
    assert!(host.told().contains("WATCHDOG=1"), "the fence itself is well");
}

#[test]
fn both_watchdogs_count_by_the_terms() {
    let mut host = Host::new();
    let nonce = host.clear(0);
    assert_eq!(host.watchdog.0.lock().unwrap().timeout, None);
    assert_eq!(host.arm(0, nonce), Reply::Done);
    assert_eq!(host.watchdog.0.lock().unwrap().timeout, Some(2));
    assert!(host.told().contains("WATCHDOG_USEC=1000000\n"));
    // PID 1 may not have taken it.
    host.process.turn(at(1_000));
    assert!(host.told().contains("WATCHDOG_USEC=1000000\nWATCHDOG=1"), "it is said with each sign of life");
}

#[test]
fn a_device_that_cannot_count_so_little_is_said_and_nothing_is_armed_again_and_again() {
    let mut host = Host::new();
    host.watchdog.0.lock().unwrap().shortest = 3;
    let nonce = host.clear(0);
    let reply = host.arm(0, nonce);
    assert!(
        matches!(&reply, Reply::Refused(Refusal::Unable(unable)) if unable.to_string().contains("2 s")),
        "{reply:?}"
    );
    host.process.turn(at(1_000));
    host.process.turn(at(2_000));
    assert!(matches!(host.stage(2_000), Stage::Unable(_)));
    assert!(host.told().contains("can't be armed"));
}

#[test]
fn a_pid_1_that_hears_nothing_holds_up_nothing() {
    let mut host = Host::running();
    for second in 0..5_000 {
        let now = second * 1_000;
        assert_eq!(host.ask(now, &Request::Renewed { epoch: EPOCH, sent: at(now) }), Reply::Done);
        host.process.turn(at(now));
    }
    let heard = host.told().matches("WATCHDOG=1").count();
    assert!(heard < 5_000, "its queue has an end: {heard}");
    host.process.turn(at(5_004_000));
    assert!(host.groups.was_killed());
}

#[test]
fn a_device_is_written_to_as_the_kernel_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("watchdog");
    let mut device = Device::at(&path);
    let error = device.open().unwrap_err().to_string();
    assert!(error.contains("watchdog") && error.contains("fence.watchdog"), "{error}");
    device.pet().unwrap();
    fs::write(&path, "").unwrap();
    device.open().unwrap();
    device.pet().unwrap();
    device.open().unwrap();
    device.pet().unwrap();
    let error = device.set_timeout(2).unwrap_err().to_string();
    assert!(error.contains("2 s"), "{error}");
    device.disarm();
    device.pet().unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), "11V");
}

/// A fence that serves its socket, by the clock of this machine.
struct Serving {
    groups: Groups,
    watchdog: FakeWatchdog,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    fn start() -> Self {
        let (groups, watchdog) = (Groups::new(), FakeWatchdog::default());
        let (root, fake) = (groups.0.path().to_owned(), watchdog.clone());
        let listener = Listener::bind(&socket_in(&root)).unwrap();
        let thread = spawn(move || {
            let process =
                Process::new(Slice::below(root), Box::new(fake), Systemd::at(None, Box::new(io::sink())), None);
            serve(process, &listener).unwrap();
        });
        Self { groups, watchdog, thread: Some(thread) }
    }

    fn path(&self) -> PathBuf {
        socket_in(self.groups.0.path())
    }

    fn ask(&self, request: &Request) -> Reply {
        ask(&self.path(), request).unwrap()
    }

    /// Arm it, for a lease from now.
    fn lease(&self) {
        let deadline = Instant::now() + MAX_WAIT;
        let nonce = loop {
            match self.ask(&Request::Status) {
                Reply::Status(Status { stage: Stage::Idle { nonce }, .. }) => break nonce,
                reply => assert!(Instant::now() < deadline, "{reply:?}"),
            }
        };
        let terms = LeaseTerms::RELAXED;
        assert_eq!(self.ask(&Request::Arm { nonce, epoch: EPOCH, terms }), Reply::Done);
        assert_eq!(self.ask(&Request::Renewed { epoch: EPOCH, sent: now() }), Reply::Done);
    }
}

fn call(path: &Path) -> OwnedFd {
    let caller = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&caller, &SocketAddrUnix::new(path).unwrap()).unwrap();
    caller
}

impl Drop for Serving {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.groups.run(&[]);
        ask(&self.path(), &Request::End).unwrap();
        thread.join().unwrap();
    }
}

#[test]
fn the_gate_of_a_unit_gets_its_yes() {
    let fence = Serving::start();
    fence.lease();
    fence.ask(&Request::Allow { epoch: EPOCH, instance: web(), generation: GENERATION });
    let start = Request::Start { instance: web(), generation: GENERATION };
    assert_eq!(fence.ask(&start), Reply::Refused(Refusal::Outside));
    fence.groups.run(&[getpid()]);
    assert_eq!(fence.ask(&start), Reply::Done);
}

#[test]
fn only_its_own_user_may_ask() {
    use std::os::unix::fs::PermissionsExt as _;
    let fence = Serving::start();
    assert_eq!(fs::metadata(fence.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_connection_is_good_for_one_request() {
    let fence = Serving::start();
    let caller = call(&fence.path());
    let status = postcard::to_stdvec(&Request::Status).unwrap();
    send(&caller, &status, SendFlags::NOSIGNAL).unwrap();
    assert!(receive(&caller).is_ok_and(|packet| !packet.is_empty()));
    // Whether a second one is still taken is chance; nobody answers it.
    let _ = send(&caller, &status, SendFlags::NOSIGNAL);
    let next = receive(&caller);
    assert!(next.as_ref().map_or(true, Vec::is_empty), "{next:?}");
}

fn receive(caller: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut packet = vec![0; 64];
    let (_, length) = recv(caller, &mut packet[..], RecvFlags::empty())?;
    packet.truncate(length);
    Ok(packet)
}

#[test]
fn no_more_clients_are_taken_than_it_has_room_for() {
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&socket_in(dir.path())).unwrap();
    let _callers: Vec<OwnedFd> = (0..=MAX_CLIENTS).map(|_| call(&socket_in(dir.path()))).collect();
    let mut clients = Vec::new();
    listener.accept(&mut clients, at(0));
    assert_eq!(clients.len(), MAX_CLIENTS);
    clients.pop();
    listener.accept(&mut clients, at(0));
    assert_eq!(clients.len(), MAX_CLIENTS);
}

#[test]
fn clients_that_say_nothing_keep_nobody_waiting_for_long() {
    let fence = Serving::start();
    fence.lease();
    let silent: Vec<OwnedFd> = (0..2 * MAX_CLIENTS).map(|_| call(&fence.path())).collect();
    assert!(matches!(ask_until_heard(&fence), Reply::Status(_)));
    drop(silent);
}

/// As a client does that is told to wait longer than it may.
fn ask_until_heard(fence: &Serving) -> Reply {
    let deadline = Instant::now() + MAX_WAIT;
    loop {
        match ask(&fence.path(), &Request::Status) {
            Ok(reply) => return reply,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

#[test]
fn what_an_older_fence_does_not_know_it_refuses() {
    let fence = Serving::start();
    let caller = call(&fence.path());
    send(&caller, &[200, 1, 2, 3], SendFlags::NOSIGNAL).unwrap();
    let reply: Reply = postcard::from_bytes(&receive(&caller).unwrap()).unwrap();
    assert_eq!(reply, Reply::Refused(Refusal::Unknown));
}

#[test]
fn the_longest_status_arrives() {
    let fence = Serving::start();
    fence.lease();
    for number in 0..MAX_ALLOWED {
        let instance = format!("{}{number:05}-65535", "a".repeat(52)).parse().unwrap();
        let allow = Request::Allow { epoch: EPOCH, instance, generation: Generation(u64::MAX) };
        assert_eq!(fence.ask(&allow), Reply::Done);
    }
    let Reply::Status(status) = fence.ask(&Request::Status) else { panic!("no status") };
    assert_eq!(status.allowed.len(), MAX_ALLOWED);
}

#[test]
fn who_tells_it_to_end_hears_so_when_nothing_runs_and_the_device_is_closed() {
    let mut fence = Serving::start();
    fence.lease();
    fence.groups.run(&[getpid()]);
    let path = fence.path();
    let told = spawn(move || ask(&path, &Request::End).unwrap());
    let deadline = Instant::now() + MAX_WAIT;
    while !fence.groups.was_killed() {
        assert!(Instant::now() < deadline && !told.is_finished(), "it is told to end, and kills nothing");
    }
    assert!(fence.watchdog.0.lock().unwrap().is_open);
    fence.groups.run(&[]);
    assert_eq!(told.join().unwrap(), Reply::Done);
    assert!(!fence.watchdog.0.lock().unwrap().is_open);
    fence.thread.take().unwrap().join().unwrap();
    let error = ask(&fence.path(), &Request::Status).unwrap_err().to_string();
    assert!(error.contains("blixard-fence.service"), "{error}");
}
