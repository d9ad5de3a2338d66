//! Hosts that run VMs, as far as their agents know: an agent and a fence each, as processes, and units that are only noted.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use blixard::agent::Traits;
use blixard::boot_time;
use blixard::fence::{self, Settings};
use blixard::units::{Units, UnitsError, ask_fence};
use blixard_core::fence::{Reply, Request, Stage};
use blixard_core::reconcile::UnitChange;
use blixard_core::types::{BootTime, LeaseTerms, NodeEpoch};
use blixard_core::unit::{Observed, ObservedVm, UnitPhase, VmUnit};
use tokio::sync::watch;

use crate::address::free_address;
use crate::member::MAX_WAIT;
use crate::probe::pause;
use crate::process::Process;
use crate::servers::Servers;

/// Names the folder in a process that is to be a host's agent, or its fence.
const AGENT: &str = "BLIXARD_HOST_AGENT";
const FENCE: &str = "BLIXARD_HOST_FENCE";
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// A host: its place, which stays, and its processes, if they run.
pub struct Host {
    dir: PathBuf,
    running: Option<[Process; 2]>,
}

/// In a process that [`Host::start`] has started: an agent or a fence until it ends, and its exit status; nothing elsewhere.
pub fn be_host() -> Option<ExitCode> {
    if let Some(dir) = std::env::var_os(FENCE).map(PathBuf::from) {
        let settings = Settings {
            socket: fence::socket_in(&dir.join("run")),
            control_groups: dir.join("groups"),
            watchdog: None,
            hypervisor: None,
        };
        return Some(fence::run(settings).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS));
    }
    let dir = PathBuf::from(std::env::var_os(AGENT)?);
    let units = || NotedUnits { dir: dir.clone(), observed: Mutex::default(), changes: watch::Sender::new(0) };
    let connect = |_| std::future::ready(Ok(units()));
    Some(blixard::agent::run(&dir.join("config.toml"), Traits::default(), connect))
}

impl Host {
    /// A worker of these servers with room for so many VMs of one processor, which doesn't run yet.
    pub fn new(dir: &Path, name: &str, servers: &Servers, vms: u32) -> Self {
        let dir = dir.join(name);
        let (at, address) = (dir.display(), free_address());
        let secret = servers.members[0].dir.join("secret");
        let secret = secret.display();
        let listed: Vec<_> =
            servers.members.iter().map(|server| format!("{}@{}", server.name, server.address)).collect();
        let config = format!(
            "[node]\nname = \"{name}\"\ndata_dir = \"{at}/data\"\nrun_dir = \"{at}/run\"\nlisten = \"{address}\"\n\
             address = \"{address}\"\nrole = \"worker\"\n\
             [cluster]\nservers = {listed:?}\nsecret_file = \"{secret}\"\n\
             [resources]\ncpus = {vms}\nmemory_mib = 1000000\nhypervisors = [\"qemu\"]\n"
        );
        // What is killed by control group has one that can be.
        let own = fs::read_to_string("/proc/self/cgroup").expect("this is Linux");
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let group = dir.join("groups").join(own);
        let made = [&group, &dir.join("run")].into_iter().try_for_each(fs::create_dir_all);
        let written = made
            .and_then(|()| fs::write(group.join("cgroup.kill"), ""))
            .and_then(|()| fs::write(dir.join("config.toml"), config));
        written.expect("the folder can be written");
        Self { dir, running: None }
    }

    pub fn start(&mut self) {
        self.running = Some([FENCE, AGENT].map(|role| {
            let mut command = Command::new(std::env::current_exe().expect("a program knows its own path"));
            command.env(role, &self.dir).env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
            Process::start(command, &self.dir.join("log"))
        }));
    }

    /// Kills it right after its lease was renewed, and with it all that could have it renewed again: when others may run what
    /// it has run, counted from when it had asked for that renewal.
    pub async fn lose(&mut self, terms: LeaseTerms) -> BootTime {
        let before = self.deadline();
        let renewed = until("a renewal", || self.deadline().filter(|deadline| Some(*deadline) > before)).await;
        self.running = None;
        // The deadline is as much earlier than that as the one is shorter than the other.
        renewed.after(terms.wait().saturating_sub(terms.lease()))
    }

    /// Until when its fence lets VMs run.
    pub fn deadline(&self) -> Option<BootTime> {
        match fence::ask(&fence::socket_in(&self.dir.join("run")), &Request::Status) {
            Ok(Reply::Status(status)) => match status.stage {
                Stage::Armed { deadline, .. } => deadline,
                Stage::Clearing | Stage::Unable(_) | Stage::Idle { .. } => None,
            },
            _ => None,
        }
    }

    /// What it was told to start, and when, in this order.
    pub fn starts(&self) -> Vec<(String, BootTime)> {
        let noted = fs::read_to_string(self.dir.join("starts")).unwrap_or_default();
        let line = |line: &str| {
            let (instance, at) = line.split_once(' ')?;
            Some((instance.to_owned(), BootTime(at.parse().ok()?)))
        };
        noted.lines().filter_map(line).collect()
    }
}

/// Returns once there is what is looked for.
pub async fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < MAX_WAIT, "waited {MAX_WAIT:?} for {what}");
        pause(LOOK).await;
    }
}

/// Units that run as soon as they are started, and end with the agent.
struct NotedUnits {
    dir: PathBuf,
    observed: Mutex<Observed>,
    changes: watch::Sender<u64>,
}

impl NotedUnits {
    async fn allow(&self, vm: &VmUnit, epoch: NodeEpoch) {
        let (instance, generation) = (vm.instance.clone(), vm.generation);
        let allowed = ask_fence(&self.dir.join("run"), Request::Allow { epoch, instance, generation }).await;
        assert!(matches!(allowed, Ok(Reply::Done)), "the fence doesn't let {} start: {allowed:?}", vm.instance);
    }

    fn note(&self, vm: &VmUnit) {
        let line = format!("{} {}\n", vm.instance, boot_time::now().0);
        let noted = File::options().create(true).append(true).open(self.dir.join("starts"));
        noted.and_then(|mut file| file.write_all(line.as_bytes())).expect("the folder can be written");
    }
}

impl Units for NotedUnits {
    async fn observe(&self) -> Result<Observed, UnitsError> {
        Ok(self.observed.lock().expect("nothing panics while it holds this lock").clone())
    }

    fn is_prepared(&self, _unit: &VmUnit) -> bool {
        true
    }

    async fn prepare(&self, _unit: &VmUnit) -> Result<(), UnitsError> {
        Ok(())
    }

    async fn perform(&self, change: &UnitChange) -> Result<(), UnitsError> {
        if let UnitChange::StartVm(vm, epoch) | UnitChange::UpdateVm(vm, epoch) = change {
            self.allow(vm, *epoch).await;
        }
        let vms = &mut self.observed.lock().expect("nothing panics while it holds this lock").vms;
        match change {
            UnitChange::StartVm(vm, _) | UnitChange::UpdateVm(vm, _) => {
                self.note(vm);
                let phase = UnitPhase::Running;
                let seen = ObservedVm { phase, installed: Some(vm.clone()), restarts: 0, last_exit: None };
                vms.insert(vm.instance.clone(), seen);
            }
            UnitChange::StopVm(instance) => _ = vms.remove(instance),
            UnitChange::StartTask(_) | UnitChange::StopTask(_) => {}
        }
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
