//! This node's units: what systemd and the run directory say of them, and how they are changed.
//!
//! Instances of two templates that the host's configuration installs. An agent that ends in the middle of a change
//! leaves something that [`Units::observe`] shows, so the next reconcile finishes it.

mod bus;
mod observe;

use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blixard_core::fence::{Refusal, Reply, Request};
use blixard_core::reconcile::UnitChange;
use blixard_core::types::{Failover, InstanceId, NodeEpoch, StorePath, TaskId};
use blixard_core::unit::{ExitRecord, Observed, TaskUnit, UnitPhase, VmUnit};
use tokio::sync::watch;
use zbus::{OwnedObjectPath, Variant};

use crate::fence;
use crate::gate::files::{self, Account, FileError, Installed, InstalledTask, RunDir};
use crate::nix::{self, NixError, NixStore};
pub use bus::BusError;
use bus::{Bus, Job};

const UNIT_INTERFACE: &str = "org.freedesktop.systemd1.Unit";
/// How long a task that has ended may take to be tidied up after before its record is looked for.
const MAX_SETTLE: Duration = Duration::from_secs(10);
/// Of what is manual, and of what is automatic.
const VM_PREFIX: &str = "blixard-vm@";
const AUTO_PREFIX: &str = "blixard-auto@";
/// Asks the guest of an automatic one to stop, and waits for it.
const STOP_PREFIX: &str = "blixard-stop@";
const TASK_PREFIX: &str = "blixard-task@";

/// What reconcile needs of a host: see its units, change one, hear that one has changed.
pub trait Units: Send + Sync + 'static {
    /// Every instance and task of which this node has a loaded unit, a file or a GC root.
    ///
    /// # Errors
    /// Systemd or a directory can't be read. One file that can't be understood counts as missing, and is logged.
    fn observe(&self) -> impl Future<Output = Result<Observed, UnitsError>> + Send;

    /// Whether a VM's runner is in the store, so far as can be seen at once.
    fn is_prepared(&self, unit: &VmUnit) -> bool;

    /// Bring a VM's runner into the store and root it. May take as long as a download; dropping the future gives it up.
    ///
    /// # Errors
    /// The path can't be had, or isn't a runner.
    fn prepare(&self, unit: &VmUnit) -> impl Future<Output = Result<(), UnitsError>> + Send;

    /// Make one change, and wait until it is made. Doing it again changes nothing more.
    ///
    /// # Errors
    /// Whatever was in the way, by the attempt; a stop that returns Ok is confirmed: nothing of the unit runs.
    fn perform(&self, change: &UnitChange) -> impl Future<Output = Result<(), UnitsError>> + Send;

    /// A counter that goes up when one of the units may have changed by itself.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Why units could not be seen or changed.
#[derive(Debug, thiserror::Error)]
pub enum UnitsError {
    #[error("cannot connect to systemd")]
    Connect { source: BusError },
    #[error("cannot list the units of instances")]
    List { source: BusError },
    #[error("cannot read the directory {}", path.display())]
    ReadDir { path: PathBuf, source: io::Error },
    #[error("cannot use the GC roots of instances")]
    Roots { source: NixError },
    #[error("cannot have the runner of {instance} in the store")]
    Realise { instance: InstanceId, source: NixError },
    #[error("cannot start {instance}: {runner} has no bin/microvm-run; is it a microVM's runner?")]
    NotARunner { instance: InstanceId, runner: StorePath },
    #[error("cannot use the files of {unit}")]
    Files { unit: String, source: FileError },
    #[error("cannot set the limits of {unit}: does this host have the template?")]
    SetLimits { unit: String, source: BusError },
    #[error("cannot remove the run-time limits of {unit} in {}", path.display())]
    RemoveLimits { unit: String, path: PathBuf, source: io::Error },
    #[error("cannot ask the fence about {unit}")]
    AskFence { unit: String, source: fence::AskError },
    #[error("the fence refuses {unit}")]
    Refused {
        unit: String,
        #[source]
        refusal: Refusal,
    },
    #[error("cannot start {unit}")]
    Start { unit: String, source: BusError },
    #[error("cannot start {unit}: its job ended as {result:?}; see: journalctl -u {unit}")]
    Started { unit: String, result: String },
    #[error("cannot stop {unit}")]
    Stop { unit: String, source: BusError },
    #[error("cannot stop {unit}: after its job ended as {result:?} it is {phase:?}; see: journalctl -u {unit}")]
    Stopped { unit: String, result: String, phase: UnitPhase },
}

/// What of this host every unit is made with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub run_dir: PathBuf,
    pub data_dir: PathBuf,
    /// Who VMs run as.
    pub vms: Account,
    /// Who tasks run as; one who may signal a VM's processes could end it.
    pub tasks: Account,
    /// The bridge for taps.
    pub bridge: Option<String>,
    /// Where systemd keeps what is set at run time; elsewhere only in tests.
    pub control_dir: PathBuf,
}

/// Where systemd keeps properties that were set at run time.
pub const CONTROL_DIR: &str = "/run/systemd/system.control";

/// The units of the systemd that is PID 1 here, over the system bus.
#[derive(Debug)]
pub struct Systemd<N> {
    settings: Settings,
    run_dir: RunDir,
    nix: N,
    bus: Bus,
}

impl<N: NixStore> Systemd<N> {
    /// Connect to the system bus, and stay connected until this is dropped.
    ///
    /// # Errors
    /// [`UnitsError::Connect`].
    pub async fn connect(settings: Settings, nix: N) -> Result<Self, UnitsError> {
        let bus = Bus::connect(&[VM_PREFIX, AUTO_PREFIX, TASK_PREFIX])
            .await
            .map_err(|source| UnitsError::Connect { source })?;
        Ok(Self { run_dir: RunDir::new(&settings.run_dir), settings, nix, bus })
    }

    async fn realise(&self, vm: &VmUnit) -> Result<(), UnitsError> {
        let realised = self.nix.realise(&vm.runner).await;
        realised.map_err(|source| UnitsError::Realise { instance: vm.instance.clone(), source })
    }

    async fn root(&self, vm: &VmUnit) -> Result<(), UnitsError> {
        if !Path::new(vm.runner.as_str()).join("bin/microvm-run").exists() {
            return Err(UnitsError::NotARunner { instance: vm.instance.clone(), runner: vm.runner.clone() });
        }
        let added = self.nix.add_root(&vm.instance.to_string(), &vm.runner).await;
        added.map_err(|source| UnitsError::Roots { source })
    }

    async fn start_vm(&self, vm: &VmUnit, epoch: NodeEpoch) -> Result<(), UnitsError> {
        if !self.is_prepared(vm) {
            self.prepare(vm).await?;
        }
        // Again, as stopping an earlier run has removed it.
        self.root(vm).await?;
        let unit = vm_unit(&vm.instance, vm.failover);
        let exit = self.run_dir.vm_exit(&vm.instance);
        if files::read::<ExitRecord>(&exit).map_or(true, |last| last.is_some_and(|l| l.generation != vm.generation)) {
            files::remove(&exit).map_err(files_of(&unit))?;
        }
        self.install_vm(vm, epoch).await?;
        let job = self.begin_start(&unit, vm.cpus, vm.memory_max_mib).await?;
        // Whether a collector that had read the roots before takes the runner away, only the store can say. Hardly ever does
        // one, and to ask takes as long as to start. If this agent ends before it is told, the VM runs on, and its next start
        // has the runner again.
        let (started, realised) = tokio::join!(started(unit, job), self.realise(vm));
        if realised.is_err() {
            // Not for good: the fence isn't told, or it would let this generation never start again.
            match vm.failover {
                Failover::Manual => self.stop_manual(&vm.instance).await?,
                Failover::Automatic => self.stop_automatic(&vm.instance, None).await?,
            }
            self.remove_root(&vm.instance).await?;
        }
        realised.and(started)
    }

    async fn update_vm(&self, vm: &VmUnit, epoch: NodeEpoch) -> Result<(), UnitsError> {
        self.install_vm(vm, epoch).await?;
        self.set_limits(&vm_unit(&vm.instance, vm.failover), vm.cpus, vm.memory_max_mib).await
    }

    async fn install_vm(&self, vm: &VmUnit, epoch: NodeEpoch) -> Result<(), UnitsError> {
        let unit = vm_unit(&vm.instance, vm.failover);
        if vm.failover == Failover::Automatic {
            let (instance, generation) = (vm.instance.clone(), vm.generation);
            // Before the file: what the gate finds there may be started.
            self.ask_fence(&unit, Request::Allow { epoch, instance, generation }).await?;
        }
        let installed = Installed {
            unit: vm.clone(),
            account: self.settings.vms.clone(),
            bridge: self.settings.bridge.clone(),
            work_dir: self.settings.data_dir.join("vms").join(vm.instance.to_string()),
        };
        files::write(&self.run_dir.vm(&vm.instance), &installed).map_err(files_of(&unit))
    }

    async fn stop_vm(&self, instance: &InstanceId) -> Result<(), UnitsError> {
        let installed = files::read::<Installed>(&self.run_dir.vm(instance)).ok().flatten().map(|file| file.unit);
        match installed {
            Some(VmUnit { failover: Failover::Manual, .. }) => self.stop_manual(instance).await?,
            Some(VmUnit { generation, .. }) => {
                let stop = Request::Stop { instance: instance.clone(), generation };
                self.stop_automatic(instance, Some(stop)).await?;
            }
            // Without its file it may be either.
            None => {
                self.stop_automatic(instance, None).await?;
                self.stop_manual(instance).await?;
            }
        }
        // Last, so that the instance is still seen if this agent ends before.
        self.remove_root(instance).await
    }

    async fn remove_root(&self, instance: &InstanceId) -> Result<(), UnitsError> {
        self.nix.remove_root(&instance.to_string()).await.map_err(|source| UnitsError::Roots { source })
    }

    async fn stop_manual(&self, instance: &InstanceId) -> Result<(), UnitsError> {
        let unit = vm_unit(instance, Failover::Manual);
        self.stop(&unit, &self.run_dir.vm(instance), &self.run_dir.vm_exit(instance), None).await
    }

    async fn stop_automatic(&self, instance: &InstanceId, stop: Option<Request>) -> Result<(), UnitsError> {
        let unit = vm_unit(instance, Failover::Automatic);
        if let Some(stop) = stop.clone() {
            // Before the guest is off: its unit would start it again, however soon that is stopped, too.
            match self.ask_fence(&unit, stop).await {
                Ok(()) | Err(UnitsError::Refused { refusal: Refusal::Runs, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.ask_to_stop(&unit, instance).await?;
        self.stop(&unit, &self.run_dir.vm(instance), &self.run_dir.vm_exit(instance), stop).await
    }

    /// The guest of a live unit is asked to stop, and waited for; what comes of it, the stop of the unit itself shows.
    async fn ask_to_stop(&self, unit: &str, instance: &InstanceId) -> Result<(), UnitsError> {
        let failed = |source| UnitsError::Stop { unit: unit.to_owned(), source };
        if self.phase(unit).await.map_err(failed)? == UnitPhase::Inactive {
            return Ok(());
        }
        let asking = format!("{STOP_PREFIX}{instance}.service");
        match self.bus.job("StartUnit", &(&*asking, "replace")).await {
            Ok(result) if result == "done" => Ok(()),
            Ok(result) => {
                tracing::warn!(unit, result, "a guest was not asked to stop, so its unit ends it");
                Ok(())
            }
            Err(source) => Err(failed(source)),
        }
    }

    async fn ask_fence(&self, unit: &str, request: Request) -> Result<(), UnitsError> {
        match ask_fence(&self.settings.run_dir, request).await {
            Ok(Reply::Refused(refusal)) => Err(UnitsError::Refused { unit: unit.to_owned(), refusal }),
            Ok(_) => Ok(()),
            Err(source) => Err(UnitsError::AskFence { unit: unit.to_owned(), source }),
        }
    }

    async fn start_task(&self, task: &TaskUnit) -> Result<(), UnitsError> {
        let unit = task_unit(task.task);
        let installed = InstalledTask {
            unit: task.clone(),
            account: self.settings.tasks.clone(),
            work_dir: self.settings.data_dir.join("tasks").join(task.task.to_string()),
        };
        files::write(&self.run_dir.task(task.task), &installed).map_err(files_of(&unit))?;
        let job = self.begin_start(&unit, task.cpus, task.memory_max_mib).await?;
        let started = started(unit.clone(), job).await;
        if matches!(started, Err(UnitsError::Started { .. })) {
            // One that has ended before systemd called it started has run all the same, as its record then says.
            self.settle(&unit).await.map_err(|source| UnitsError::Start { unit, source })?;
            if self.run_dir.task_exit(task.task).exists() {
                return Ok(());
            }
        }
        started
    }

    /// Until a unit is neither starting nor stopping, or has long enough been asked.
    async fn settle(&self, unit: &str) -> Result<(), BusError> {
        let mut changes = self.bus.changes();
        let settled = async {
            while matches!(self.phase(unit).await?, UnitPhase::Starting | UnitPhase::Stopping) {
                if changes.changed().await.is_err() {
                    return Err(BusError::Gone);
                }
            }
            Ok(())
        };
        tokio::time::timeout(MAX_SETTLE, settled).await.unwrap_or(Ok(()))
    }

    /// Before the unit is loaded, too: systemd keeps them in `/run` and they hold from the first instruction.
    async fn set_limits(&self, unit: &str, cpus: u32, memory_max_mib: u64) -> Result<(), UnitsError> {
        let properties = [
            ("MemoryMax", Variant::from(memory_max_mib.saturating_mul(1 << 20))),
            ("CPUQuotaPerSecUSec", Variant::from(u64::from(cpus) * 1_000_000)),
        ];
        let set = self.bus.manager("SetUnitProperties", &(unit, true, &properties[..])).await;
        set.map_err(|source| UnitsError::SetLimits { unit: unit.to_owned(), source })
    }

    /// With these limits. Systemd forgets a unit that nobody uses after each call, with its control groups, and takes as long to
    /// load it again as for the start itself; so it is used until it has a job.
    async fn begin_start(&self, unit: &str, cpus: u32, memory_max_mib: u64) -> Result<Job, UnitsError> {
        let failed = |source| UnitsError::Start { unit: unit.to_owned(), source };
        let used = async {
            let used = self.bus.manager::<_, ()>("RefUnit", &(unit,)).await;
            used.map_err(|source| UnitsError::SetLimits { unit: unit.to_owned(), source })
        };
        let begun = match tokio::try_join!(used, self.set_limits(unit, cpus, memory_max_mib)) {
            // "fail": a stop that is under way isn't turned round.
            Ok(_) => self.bus.begin_job("StartUnit", &(unit, "fail")).await.map_err(failed),
            Err(error) => Err(error),
        };
        // Where the bus has gone, it isn't used any more either.
        let _ = self.bus.manager::<_, ()>("UnrefUnit", &(unit,)).await;
        begun
    }

    /// Stop a unit and take away what it would need to be started again; before that the fence, where `stop` is for it, sees
    /// that nothing of it runs.
    async fn stop(&self, unit: &str, file: &Path, exit: &Path, stop: Option<Request>) -> Result<(), UnitsError> {
        let failed = |source| UnitsError::Stop { unit: unit.to_owned(), source };
        // While the host goes down the unit has a stop of its own already, which waits until the host is empty.
        let result = match self.bus.job("StopUnit", &(unit, "ignore-dependencies")).await {
            Err(error) if error.is_no_such_unit() => "not loaded".to_owned(),
            result => result.map_err(failed)?,
        };
        let confirm = async || match self.phase(unit).await.map_err(failed)? {
            UnitPhase::Inactive => Ok(()),
            phase => Err(UnitsError::Stopped { unit: unit.to_owned(), result: result.clone(), phase }),
        };
        confirm().await?;
        if let Some(stop) = stop {
            self.ask_fence(unit, stop).await?;
        }
        // Without its file no gate lets it start; so what is inactive after this stays so.
        files::remove(file).map_err(files_of(unit))?;
        confirm().await?;
        match self.bus.manager::<_, ()>("ResetFailedUnit", &(unit,)).await {
            Err(error) if !error.is_no_such_unit() => return Err(failed(error)),
            _ => {}
        }
        let path = self.settings.control_dir.join(format!("{unit}.d"));
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(UnitsError::RemoveLimits { unit: unit.to_owned(), path, source });
            }
            _ => {}
        }
        files::remove(exit).map_err(files_of(unit))
    }

    async fn phase(&self, unit: &str) -> Result<UnitPhase, BusError> {
        let path: OwnedObjectPath = match self.bus.manager("GetUnit", &(unit,)).await {
            Err(error) if error.is_no_such_unit() => return Ok(UnitPhase::Inactive),
            path => path?,
        };
        let state = self.bus.property(&path, UNIT_INTERFACE, "ActiveState").await?;
        observe::phase_of(&self.bus, &path, <&str>::try_from(&*state).unwrap_or_default(), "").await
    }
}

impl<N: NixStore> Units for Systemd<N> {
    async fn observe(&self) -> Result<Observed, UnitsError> {
        observe::observe(&self.bus, &self.run_dir, &self.nix).await
    }

    fn is_prepared(&self, vm: &VmUnit) -> bool {
        // What is there is checked when it is started.
        nix::is_complete(Path::new(vm.runner.as_str()))
    }

    async fn prepare(&self, vm: &VmUnit) -> Result<(), UnitsError> {
        self.realise(vm).await?;
        self.root(vm).await
    }

    async fn perform(&self, change: &UnitChange) -> Result<(), UnitsError> {
        match change {
            UnitChange::StopVm(instance) => self.stop_vm(instance).await,
            UnitChange::StartVm(vm, epoch) => self.start_vm(vm, *epoch).await,
            UnitChange::UpdateVm(vm, epoch) => self.update_vm(vm, *epoch).await,
            UnitChange::StartTask(task) => self.start_task(task).await,
            UnitChange::StopTask(task) => {
                self.stop(&task_unit(*task), &self.run_dir.task(*task), &self.run_dir.task_exit(*task), None).await
            }
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.bus.changes()
    }
}

/// Once the job that starts a unit is over.
async fn started(unit: String, job: Job) -> Result<(), UnitsError> {
    match job.end().await {
        Ok(result) if result == "done" => Ok(()),
        Ok(result) => Err(UnitsError::Started { unit, result }),
        Err(source) => Err(UnitsError::Start { unit, source }),
    }
}

/// Asks the fence of the host with this run directory, off the threads that have other things to do: one that hangs takes two
/// seconds.
///
/// # Errors
/// As [`fence::ask`].
pub async fn ask_fence(run_dir: &Path, request: Request) -> Result<Reply, fence::AskError> {
    let socket = fence::socket_in(run_dir);
    let asked = tokio::task::spawn_blocking(move || fence::ask(&socket, &request)).await;
    asked.expect("asking doesn't panic")
}

/// The name of an instance's unit.
pub fn vm_unit(instance: &InstanceId, failover: Failover) -> String {
    let prefix = match failover {
        Failover::Manual => VM_PREFIX,
        Failover::Automatic => AUTO_PREFIX,
    };
    format!("{prefix}{instance}.service")
}

/// The name of a task's unit.
pub fn task_unit(task: TaskId) -> String {
    format!("{TASK_PREFIX}{task}.service")
}

fn files_of(unit: &str) -> impl Fn(FileError) -> UnitsError {
    move |source| UnitsError::Files { unit: unit.to_owned(), source }
}
