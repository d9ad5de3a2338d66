//! The verbs about VMs, and the command line's own VMs: how one is described there.

use std::path::Path;

use blixard_core::manifest::VmSpec;
use blixard_core::types::{
    Failover, Hypervisor, InstanceId, Labels, NodeName, Priority, RestartPolicy, StorePath, VmName,
};
use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;

use super::ask::{AskError, Asked, get_status, look, print};
use super::client::connect;
use super::watch::{Left, watch};
use super::{Reading, Socket, show};
use crate::api::proto;

#[derive(Subcommand, Debug)]
pub enum VmVerb {
    /// List all
    Ls {
        #[command(flatten)]
        reading: Reading,
    },
    /// Show everything about one
    Show {
        /// A VM, or one instance of it, such as web-0
        name: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// Make a VM that no manifest declares, and that no manifest touches
    Create(CreateArgs),
    /// Let a stopped VM run
    ///
    /// Only one that was made with `blixard vm create`: of the others the manifest decides.
    Start {
        /// The VM's name
        name: VmName,
        #[command(flatten)]
        socket: Socket,
    },
    /// Stop a VM until it is started again
    ///
    /// Only one that was made with `blixard vm create`: of the others the manifest decides.
    Stop {
        /// The VM's name
        name: VmName,
        #[command(flatten)]
        socket: Socket,
    },
    /// Let an instance run on another node, and wait until it does
    ///
    /// It is stopped first, and starts there once that is confirmed. It is a move and no rule: what moves it later moves it.
    Move(MoveArgs),
    /// Stop a VM and forget it
    ///
    /// Only one that was made with `blixard vm create`: the others are removed from the manifest.
    Rm {
        /// The VM's name
        name: VmName,
        #[command(flatten)]
        socket: Socket,
    },
}

#[derive(Args, Debug)]
pub struct MoveArgs {
    /// Such as web-0
    instance: InstanceId,
    /// Name of the node
    #[arg(long)]
    to: NodeName,
    /// Give up its volumes: it starts without what is in them
    #[arg(long)]
    abandon_volumes: bool,
    /// Don't wait
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    socket: Socket,
}

/// A VM in the words of the manifest, which docs/formats.md explains.
#[derive(Args, Debug)]
#[command(override_usage = "blixard vm create <NAME> --runner <PATH>... --vcpus <N> --memory <MIB> [OPTIONS]")]
pub struct CreateArgs {
    /// The VM's name
    name: VmName,
    /// microvm.nix runners, one per replica
    #[arg(long = "runner", value_name = "PATH", required = true, num_args = 1..)]
    runners: Vec<StorePath>,
    /// CPUs of the guest, and of the host
    #[arg(long, value_name = "N")]
    vcpus: u32,
    /// The guest's memory, in MiB
    #[arg(long, value_name = "MIB")]
    memory: u64,
    /// What the hypervisor takes on top of it, in MiB [default: by hypervisor]
    #[arg(long, value_name = "MIB")]
    memory_overhead: Option<u64>,
    /// What its volumes take, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    disk: u64,
    /// What runs the guest
    #[arg(long, value_name = "NAME", default_value = "qemu", value_parser = named::<Hypervisor>)]
    hypervisor: Hypervisor,
    /// Nix's name of the machine type that it needs
    #[arg(long, value_name = "NAME", default_value_t = crate::probe::system())]
    system: String,
    /// Let it also run on a host without /dev/kvm
    #[arg(long)]
    no_kvm: bool,
    /// A label that a host must have, with its value; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Whether it is started again after it ended: always, on-failure or never
    #[arg(long, value_name = "WHEN", default_value = "always", value_parser = named::<RestartPolicy>)]
    restart: RestartPolicy,
    /// The runner itself tells systemd that the guest is up
    #[arg(long)]
    notifies: bool,
    /// What becomes of it where its host is lost: automatic or manual
    #[arg(long, value_name = "POLICY", default_value = "automatic", value_parser = named::<Failover>)]
    failover: Failover,
    /// How early it is placed, from 0 to 1000: the highest first
    #[arg(long, value_name = "N", default_value_t)]
    priority: Priority,
    /// How many replicas run at least while hosts are drained [default: all but one]
    #[arg(long, value_name = "N")]
    min_available: Option<u16>,
    /// Don't let it run until `blixard vm start`
    #[arg(long)]
    stopped: bool,
    #[command(flatten)]
    socket: Socket,
}

impl CreateArgs {
    fn spec(&self) -> Result<VmSpec, AskError> {
        let mut requires = Labels::new();
        for (key, value) in &self.labels {
            if requires.insert(key.clone(), value.clone()).is_some() {
                return Err(AskError::LabelTwice { key: key.clone() });
            }
        }
        Ok(VmSpec {
            runners: self.runners.clone(),
            system: self.system.clone(),
            hypervisor: self.hypervisor,
            vcpus: self.vcpus,
            memory_mib: self.memory,
            memory_overhead_mib: self.memory_overhead,
            disk_mib: self.disk,
            kvm: !self.no_kvm,
            requires,
            restart: self.restart,
            notifies: self.notifies,
            failover: self.failover,
            priority: self.priority,
            min_available: self.min_available,
        })
    }
}

pub async fn ask(verb: VmVerb) -> Asked {
    match verb {
        VmVerb::Ls { reading } => list(&reading).await,
        VmVerb::Show { name, reading } => show(&reading, &name).await,
        VmVerb::Create(args) => create(&args).await,
        VmVerb::Start { name, socket } => set_running(&socket.socket, &name, true).await,
        VmVerb::Stop { name, socket } => set_running(&socket.socket, &name, false).await,
        VmVerb::Move(args) => move_one(&args).await,
        VmVerb::Rm { name, socket } => remove(&socket.socket, &name).await,
    }
}

async fn list(reading: &Reading) -> Asked {
    print(&show::instances(&get_status(reading).await?.instances, look()))
}

async fn show(reading: &Reading, name: &str) -> Asked {
    let instances = get_status(reading).await?.instances;
    let named: Vec<_> = instances.into_iter().filter(|vm| vm.vm == name || vm.name == name).collect();
    if named.is_empty() {
        return Err(AskError::Unknown { kind: "vm", name: name.to_owned() });
    }
    print(&show::vm(&named, look()))
}

async fn create(args: &CreateArgs) -> Asked {
    let json = serde_json::to_vec(&args.spec()?).expect("a VM has only text and numbers");
    let mut client = connect(&args.socket.socket).await.map_err(AskError::Connect)?;
    let must = proto::Presence::Absent.into();
    let request = proto::PutVmRequest { name: args.name.to_string(), json, running: !args.stopped, must };
    client.put_vm(request).await.map_err(AskError::Refused)?;
    print(&format!("{} is made{}\n", args.name, if args.stopped { ", and is stopped" } else { "" }))
}

async fn set_running(socket: &Path, name: &VmName, running: bool) -> Asked {
    let mut client = connect(socket).await.map_err(AskError::Connect)?;
    let request = proto::SetVmRunningRequest { name: name.to_string(), running };
    client.set_vm_running(request).await.map_err(AskError::Refused)?;
    print(&format!("{name} is to {}\n", if running { "run" } else { "be stopped" }))
}

async fn move_one(args: &MoveArgs) -> Asked {
    let MoveArgs { instance, to, abandon_volumes, no_wait, socket } = args;
    let mut client = connect(&socket.socket).await.map_err(AskError::Connect)?;
    let (name, abandon_volumes) = (instance.to_string(), *abandon_volumes);
    let request = proto::MoveRequest { instance: name.clone(), to: to.to_string(), abandon_volumes };
    let generation = client.r#move(request).await.map_err(AskError::Refused)?.into_inner().generation;
    if *no_wait {
        return print(&format!("{name} is being moved to {to}\n"));
    }
    let left = |status: &proto::StatusReply| left_to_move(&name, to.as_str(), generation, status);
    watch(left, client, &socket.socket, &format!("{name} runs on {to}")).await
}

/// How far an instance has come to where it is wanted; it was of this generation when that was said.
fn left_to_move(name: &str, to: &str, generation: u64, status: &proto::StatusReply) -> Left {
    let shown = status.instances.iter().find(|shown| shown.name == name);
    let Some(shown) = shown.filter(|shown| shown.state != "stopped" || !shown.node.is_empty()) else {
        return Left::Never(format!("{name} is not to run any more"));
    };
    let proto::Instance { node, state, reason, .. } = shown;
    let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let still = Left::Still(format!("{name} is {state}{why}"));
    match state.as_str() {
        // What is placed anew before the move is carried out is of another generation, too.
        "stopping" | "pending" => still,
        _ if shown.generation <= generation => still,
        _ if node != to => Left::Never(format!("{to} won't do any more for {name}, which is on {node} now")),
        "running" => Left::Nothing,
        "stopped" | "failed" => Left::Never(format!("{name} is on {to}, and is {state} there{why}")),
        _ => still,
    }
}

async fn remove(socket: &Path, name: &VmName) -> Asked {
    let mut client = connect(socket).await.map_err(AskError::Connect)?;
    client.remove_vm(proto::RemoveVmRequest { name: name.to_string() }).await.map_err(AskError::Refused)?;
    print(&format!("{name} is removed; what runs of it is being stopped\n"))
}

/// What has a name in a manifest, by that name.
fn named<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is KEY=VALUE, such as zone=a")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_waited_for_until_it_is_done_or_comes_to_nothing() {
        let left = |generation, node: &str, state: &str| {
            let (name, node, state) = ("web-0".to_owned(), node.to_owned(), state.to_owned());
            let shown = proto::Instance { name, node, state, generation, ..proto::Instance::default() };
            let status = proto::StatusReply { instances: vec![shown], ..proto::StatusReply::default() };
            match left_to_move("web-0", "beta", 3, &status) {
                Left::Nothing => "done".to_owned(),
                Left::Still(text) => text,
                Left::Never(why) => format!("never: {why}"),
            }
        };
        assert_eq!(left(3, "alpha", "stopping"), "web-0 is stopping");
        assert_eq!(left(4, "alpha", "stopping"), "web-0 is stopping", "it was placed anew before it was stopped");
        assert_eq!(left(3, "", "pending"), "web-0 is pending");
        assert_eq!(left(4, "beta", "starting"), "web-0 is starting");
        assert_eq!(left(4, "beta", "running"), "done");
        assert_eq!(left(4, "gamma", "starting"), "never: beta won't do any more for web-0, which is on gamma now");
        assert_eq!(left(3, "", "stopped"), "never: web-0 is not to run any more");
        assert_eq!(left(4, "beta", "failed"), "never: web-0 is on beta, and is failed there");
    }
}
