//! The door of every start: what the units of instances and tasks run before, beside and after the thing itself.
//!
//! ```text
//!   ExecStart=  gate vm NAME     file? policy? ─▶ account, directory, taps ─▶ drop root ─▶ READY=1 ─▶ exec microvm-run
//!               gate auto NAME   … and the fence?
//!                                 │ no
//!                                 ▼ exit 79, which the unit never restarts after
//!   ExecStop=   gate stop NAME   microvm-shutdown, then until the main process is gone
//!               gate ask NAME    … of a unit that has no ExecStop=, before it is stopped
//!   ExecStopPost= gate clean NAME  taps away, exit recorded
//! ```
//!
//! It runs as root and without the agent, so it uses files and system calls only: no threads, no bus, no async.

mod account;
mod exit;
pub mod files;
mod stop;
mod tap;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use blixard_core::fence::{self, Reply, Request};
use blixard_core::types::{Exit, Failover, Generation, InstanceId, InvalidValue, RestartPolicy, TaskId};
use blixard_core::unit::ExitRecord;
use rustix::fs::{AtFlags, CWD, Gid, Uid};

use crate::fence::{AskError, ask, processes_of};
use account::{AccountError, Ids};
use files::{FileError, Installed, InstalledTask, RunDir};
use tap::{TapError, Taps};

/// `blixard gate`: for units only.
#[derive(Debug, clap::Args)]
pub struct GateArgs {
    /// The agent's `node.run_dir`
    #[arg(long, value_name = "DIR", default_value = files::RUN_DIR)]
    run_dir: PathBuf,
    #[command(subcommand)]
    command: GateCommand,
}

/// What a unit asks of the gate; the name is the unit's `%i`.
#[derive(Debug, clap::Subcommand)]
pub enum GateCommand {
    /// Start a VM that no fence stops (`ExecStart=`)
    Vm { name: String },
    /// Start a VM if the fence lets it (`ExecStart=`)
    Auto { name: String },
    /// Ask a VM's guest to stop, and wait for it (`ExecStop=`)
    Stop { name: String },
    /// Ask the guest of a VM that the fence has let start to stop, and wait for it: its unit itself dies at once
    Ask { name: String },
    /// Tidy up after a VM, and record how it ended (`ExecStopPost=`)
    Clean { name: String },
    /// Start a task (`ExecStart=`)
    Task { name: String },
    /// Record how a task ended (`ExecStopPost=`)
    CleanTask { name: String },
}

/// Why the gate doesn't let something start.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("refuses {name:?}")]
    Name { name: String, source: InvalidValue },
    #[error(
        "refuses {name}: it isn't placed on this node ({} doesn't exist); \
         declare it, and the cluster starts it where it belongs", path.display()
    )]
    NotPlaced { name: String, path: PathBuf },
    #[error("refuses {name} in this unit: it is placed as {failover}, so its unit is {}@{name}.service", template(*.failover))]
    OtherUnit { name: String, failover: Failover },
    #[error("does not start {name}: the fence refuses it")]
    Fenced { name: String, source: fence::Refusal },
    #[error("does not start {name}: the fence can't be asked")]
    NoFence { name: String, source: AskError },
    #[error("does not start {name} again: its last run ended with {}, and its policy is {policy:?}", last.exit)]
    Over { name: String, last: ExitRecord, policy: RestartPolicy },
    #[error("does not start {task} again: it has run ({}), and a task runs once", last.exit)]
    HasRun { task: TaskId, last: ExitRecord },
}

/// Why the gate could not do its work.
#[derive(Debug, thiserror::Error)]
enum GateError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("cannot use the files of {name}")]
    Files { name: String, source: FileError },
    #[error("cannot use the account of {name}")]
    Account { name: String, source: AccountError },
    #[error("cannot use the taps of {name}")]
    Taps { name: String, source: TapError },
    #[error("cannot make the working directory {}", path.display())]
    WorkDir { path: PathBuf, source: io::Error },
    #[error("cannot tell systemd that {name} has started")]
    Notify { name: String, source: io::Error },
    #[error("cannot start the runner: {} isn't there; is the store path a microVM's runner?", program.display())]
    NoRunner { program: PathBuf, source: io::Error },
    #[error("cannot execute {:?}", program.display())]
    Execute { program: PathBuf, source: io::Error },
    #[error("cannot wait for process {pid}")]
    Wait { pid: i32, source: io::Error },
}

/// The template of the units of VMs with this policy.
const fn template(failover: Failover) -> &'static str {
    match failover {
        Failover::Automatic => "blixard-auto",
        Failover::Manual => "blixard-vm",
    }
}

/// Do what a unit asks.
///
/// Returns from a start only when it is refused (79: the unit is not to be restarted) or has failed (78, or a shell's 126
/// and 127 when the program can't be executed: systemd tries again by the unit's `Restart=`).
pub fn run(args: &GateArgs) -> ExitCode {
    let run_dir = RunDir::new(&args.run_dir);
    let result = match &args.command {
        GateCommand::Vm { name } => instance(name).and_then(|id| start_vm(&run_dir, &id, Failover::Manual)),
        GateCommand::Auto { name } => instance(name).and_then(|id| start_vm(&run_dir, &id, Failover::Automatic)),
        GateCommand::Stop { name } => instance(name).and_then(|id| stop::stop_vm(&run_dir, &id, stop::main_process())),
        GateCommand::Ask { name } => {
            instance(name).and_then(|id| stop::stop_vm(&run_dir, &id, stop::oldest(&processes_of(&id))))
        }
        GateCommand::Clean { name } => instance(name).and_then(|id| clean_vm(&run_dir, &id)),
        GateCommand::Task { name } => task(name).and_then(|id| start_task(&run_dir, id)),
        GateCommand::CleanTask { name } => task(name).and_then(|id| clean_task(&run_dir, id)),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("blixard gate: {}", crate::error_chain(&error));
    ExitCode::from(match error {
        GateError::Refused(_) => exit::REFUSED,
        // Root is gone by then, so no record can say it: a shell's two statuses do.
        GateError::Execute { source, .. } if source.kind() == io::ErrorKind::NotFound => exit::NOT_FOUND,
        GateError::Execute { .. } => exit::NOT_EXECUTABLE,
        _ => exit::NOT_STARTED,
    })
}

fn instance(name: &str) -> Result<InstanceId, GateError> {
    name.parse().map_err(|source| Refusal::Name { name: name.chars().take(100).collect(), source }.into())
}

/// Only as the agent writes it: `7` and `task-7` would be two units of one task.
fn task(name: &str) -> Result<TaskId, GateError> {
    let refused = |source| Refusal::Name { name: name.chars().take(100).collect(), source };
    let id: TaskId = name.parse().map_err(refused)?;
    if id.to_string() != name {
        return Err(refused(InvalidValue::Task { text: name.to_owned() }).into());
    }
    Ok(id)
}

fn files_of(name: &impl ToString) -> impl Fn(FileError) -> GateError {
    let name = name.to_string();
    move |source| GateError::Files { name: name.clone(), source }
}

fn start_vm(run_dir: &RunDir, id: &InstanceId, failover: Failover) -> Result<(), GateError> {
    let path = run_dir.vm(id);
    let installed = files::read::<Installed>(&path).map_err(files_of(&id))?;
    let Some(installed) = installed else { return Err(Refusal::NotPlaced { name: id.to_string(), path }.into()) };
    let unit = &installed.unit;
    if unit.failover != failover {
        return Err(Refusal::OtherUnit { name: id.to_string(), failover: unit.failover }.into());
    }
    let last = files::read::<ExitRecord>(&run_dir.vm_exit(id)).map_err(files_of(&id))?;
    if let Some(last) = last.filter(|last| exit::is_over(Some(last), unit.generation, unit.restart)) {
        // Ready first: a VM that has ended as it may is no failure, so its unit is to be inactive, not failed.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        return Err(Refusal::Over { name: id.to_string(), last, policy: unit.restart }.into());
    }
    if failover == Failover::Automatic {
        ask_fence(run_dir, id, unit.generation)?;
    }
    prepare_vm(&installed).inspect_err(|_| record_not_started(&run_dir.vm_exit(id), unit.generation))?;
    Err(execute_vm(&installed))
}

/// Whether it may start is the fence's to say, each time: it is what stops it when the node's lease is over.
fn ask_fence(run_dir: &RunDir, id: &InstanceId, generation: Generation) -> Result<(), Refusal> {
    let name = || id.to_string();
    match ask(&run_dir.fence(), &Request::Start { instance: id.clone(), generation }) {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Refused(source)) => Err(Refusal::Fenced { name: name(), source }),
        Ok(Reply::Status(_)) => Err(Refusal::Fenced { name: name(), source: fence::Refusal::Unknown }),
        Err(source) => Err(Refusal::NoFence { name: name(), source }),
    }
}

/// Only as root; where even this fails, the unit's exit status is all that is known.
fn record_not_started(path: &Path, generation: Generation) {
    let _ = files::write(path, &ExitRecord { generation, exit: Exit::NotStarted });
}

/// All that needs root, and root's last act.
fn prepare_vm(installed: &Installed) -> Result<(), GateError> {
    let name = || installed.unit.instance.to_string();
    let ids = Ids::of(&installed.account, Some(account::KVM))
        .map_err(|source| GateError::Account { name: name(), source })?;
    make_work_dir(&installed.work_dir, &ids)?;
    let program = runner_file(installed, "microvm-run");
    // Looked at before anything is made, and while a failure can still be recorded.
    fs::metadata(&program).map_err(|source| GateError::NoRunner { program, source })?;
    let taps = Taps::of(Path::new(installed.unit.runner.as_str()));
    taps.and_then(|taps| taps.make(ids.uid, installed.bridge.as_deref()))
        .map_err(|source| GateError::Taps { name: name(), source })?;
    ids.assume().map_err(|source| GateError::Account { name: name(), source })
}

/// Become the runner; returns only why not.
fn execute_vm(installed: &Installed) -> GateError {
    let mut command = Command::new(runner_file(installed, "microvm-run"));
    command.current_dir(&installed.work_dir);
    if !installed.unit.notifies {
        if let Err(source) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            return GateError::Notify { name: installed.unit.instance.to_string(), source };
        }
        command.env_remove("NOTIFY_SOCKET");
    }
    GateError::Execute { program: command.get_program().into(), source: command.exec() }
}

fn clean_vm(run_dir: &RunDir, id: &InstanceId) -> Result<(), GateError> {
    let Some(installed) = files::read::<Installed>(&run_dir.vm(id)).map_err(files_of(&id))? else { return Ok(()) };
    let taps = Ids::of(&installed.account, Some(account::KVM))
        .map_err(|source| GateError::Account { name: id.to_string(), source })
        .and_then(|ids| {
            let taps = Taps::of(Path::new(installed.unit.runner.as_str())).and_then(|taps| taps.remove(ids.uid));
            taps.map_err(|source| GateError::Taps { name: id.to_string(), source })
        });
    let recorded =
        record_exit(&run_dir.vm_exit(id), installed.unit.generation, installed.unit.restart).map_err(files_of(&id));
    recorded.and(taps)
}

fn start_task(run_dir: &RunDir, id: TaskId) -> Result<(), GateError> {
    let path = run_dir.task(id);
    let installed = files::read::<InstalledTask>(&path).map_err(files_of(&id))?;
    let Some(installed) = installed else { return Err(Refusal::NotPlaced { name: id.to_string(), path }.into()) };
    if let Some(last) = files::read::<ExitRecord>(&run_dir.task_exit(id)).map_err(files_of(&id))? {
        return Err(Refusal::HasRun { task: id, last }.into());
    }
    prepare_task(&installed).inspect_err(|_| record_not_started(&run_dir.task_exit(id), Generation(0)))?;
    Err(execute_task(&installed))
}

/// All that needs root, and root's last act.
fn prepare_task(installed: &InstalledTask) -> Result<(), GateError> {
    let name = || installed.unit.task.to_string();
    let ids = Ids::of(&installed.account, None).map_err(|source| GateError::Account { name: name(), source })?;
    make_work_dir(&installed.work_dir, &ids)?;
    ids.assume().map_err(|source| GateError::Account { name: name(), source })
}

/// Become the command; returns only why not.
fn execute_task(installed: &InstalledTask) -> GateError {
    let program = installed.unit.command.first().map_or("", String::as_str);
    let mut command = Command::new(program);
    command.args(installed.unit.command.iter().skip(1)).current_dir(&installed.work_dir);
    command.env("HOME", &installed.work_dir).env_remove("NOTIFY_SOCKET");
    GateError::Execute { program: program.into(), source: command.exec() }
}

fn clean_task(run_dir: &RunDir, id: TaskId) -> Result<(), GateError> {
    let Some(installed) = files::read::<InstalledTask>(&run_dir.task(id)).map_err(files_of(&id))? else {
        return Ok(());
    };
    record_exit(&run_dir.task_exit(id), Generation(0), RestartPolicy::Never).map_err(files_of(&id))?;
    match fs::remove_dir_all(&installed.work_dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(GateError::WorkDir { path: installed.work_dir, source })
        }
        _ => Ok(()),
    }
}

fn record_exit(path: &Path, generation: Generation, restart: RestartPolicy) -> Result<(), FileError> {
    let var = |name| std::env::var(name).ok();
    let exit = exit::exit_of(var("EXIT_CODE").as_deref(), var("EXIT_STATUS").as_deref());
    let last = files::read::<ExitRecord>(path)?;
    match exit::record(last.as_ref(), generation, restart, exit) {
        Some(record) => files::write(path, &record),
        None => Ok(()),
    }
}

fn runner_file(installed: &Installed, name: &str) -> PathBuf {
    Path::new(installed.unit.runner.as_str()).join("bin").join(name)
}

/// A directory of the account's own, below one that is root's and that everybody may pass through.
fn make_work_dir(path: &Path, ids: &Ids) -> Result<(), GateError> {
    let attempt = || -> io::Result<()> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        if !parent.exists() {
            fs::create_dir_all(parent)?;
            fs::set_permissions(parent, fs::Permissions::from_mode(0o711))?;
        }
        if !path.exists() {
            fs::create_dir(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o750))?;
        }
        let owner = (Some(Uid::from_raw(ids.uid)), Some(Gid::from_raw(ids.gid)));
        Ok(rustix::fs::chownat(CWD, path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?)
    };
    attempt().map_err(|source| GateError::WorkDir { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use blixard_core::unit::VmUnit;

    use super::*;

    #[test]
    fn a_name_that_is_no_instance_or_not_the_tasks_own_is_refused() {
        for name in ["", "../x", "web", "web-00"] {
            assert!(matches!(instance(name), Err(GateError::Refused(_))), "{name}");
        }
        for name in ["", "7", "../x", "task-07"] {
            assert!(matches!(task(name), Err(GateError::Refused(_))), "{name}");
        }
        assert_eq!(task("task-7").unwrap(), TaskId(7));
    }

    #[test]
    fn an_instance_without_a_file_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        let web = "web-0".parse().unwrap();
        for failover in [Failover::Manual, Failover::Automatic] {
            let error = start_vm(&run_dir, &web, failover).unwrap_err();
            assert!(matches!(error, GateError::Refused(Refusal::NotPlaced { .. })), "{error}");
        }
        clean_vm(&run_dir, &web).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    fn installed(dir: &Path, failover: Failover) -> RunDir {
        let run_dir = RunDir::new(dir);
        let unit = VmUnit {
            instance: "web-0".parse().unwrap(),
            generation: Generation(3),
            runner: format!("/nix/store/{}-web-0", "a".repeat(32)).parse().unwrap(),
            restart: RestartPolicy::Always,
            failover,
            notifies: false,
            cpus: 1,
            memory_max_mib: 224,
        };
        let account = files::Account { user: "nobody".into(), group: "nogroup".into() };
        let installed = Installed { unit, account, bridge: None, work_dir: dir.join("web-0") };
        files::write(&run_dir.vm(&installed.unit.instance), &installed).unwrap();
        run_dir
    }

    #[test]
    fn the_unit_of_the_other_policy_is_refused_and_the_right_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let web = "web-0".parse().unwrap();
        for (placed, asked, unit) in [
            (Failover::Automatic, Failover::Manual, "blixard-auto@web-0"),
            (Failover::Manual, Failover::Automatic, "blixard-vm@web-0"),
        ] {
            let run_dir = installed(dir.path(), placed);
            let error = start_vm(&run_dir, &web, asked).unwrap_err();
            assert!(matches!(error, GateError::Refused(Refusal::OtherUnit { .. })), "{error}");
            assert!(error.to_string().contains(unit), "{error}");
        }
    }

    #[test]
    fn what_is_automatic_does_not_start_where_no_fence_answers_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = installed(dir.path(), Failover::Automatic);
        let error = start_vm(&run_dir, &"web-0".parse().unwrap(), Failover::Automatic).unwrap_err();
        assert!(matches!(error, GateError::Refused(Refusal::NoFence { .. })), "{error}");
        assert!(crate::error_chain(&error).contains("blixard-fence.service"), "{error}");
        assert!(!dir.path().join("web-0").exists());
        assert!(!run_dir.vm_exit(&"web-0".parse().unwrap()).exists());
    }
}
