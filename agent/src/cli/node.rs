//! The verbs about nodes.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use blixard_core::types::NodeName;
use clap::{Args, Subcommand};

use super::ask::{AskError, Asked, get_status, look, print};
use super::client::{Client, connect};
use super::duration::duration;
use super::watch::{Left, watch};
use super::{Reading, Socket, show};
use crate::api::proto;

/// In which a leader is elected, if one can be, with much to spare.
const ELECTION: Duration = Duration::from_secs(1);

const NO_QUORUM: &str = "there is no quorum to move anything";

#[derive(Subcommand, Debug)]
pub enum NodeVerb {
    /// List all
    Ls {
        #[command(flatten)]
        reading: Reading,
    },
    /// Show everything about one
    Show {
        /// The node's name
        name: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// Let nothing be placed on a node any more; what it runs runs on
    Cordon {
        /// The node's name
        name: NodeName,
        #[command(flatten)]
        socket: Socket,
    },
    /// Let a node be used again that was cordoned or drained
    ///
    /// What has its volumes there comes back; nothing else moves.
    Uncordon {
        /// The node's name
        name: NodeName,
        #[command(flatten)]
        socket: Socket,
    },
    /// Empty a node, and wait until it is
    ///
    /// Nothing is placed on it any more. Its instances are stopped one after the other, and each starts elsewhere once it has
    /// stopped, where there is room; of the replicas of a VM as many go on as its manifest says, all but one by default. What has its volumes on the node stays
    /// stopped. Tasks are waited for. The node stays as it is then until `blixard node uncordon`.
    Drain(DrainArgs),
    /// Say that nothing runs on a node that does not answer: what it ran starts elsewhere
    ///
    /// Its instances with automatic failover start elsewhere by themselves; for the manual ones it takes this. Nobody checks it, but
    /// that the node does not answer and has no lease any more: if it isn't so, those run twice. The node stays a member, and
    /// runs what is placed on it once it is back.
    ConfirmDead(ConfirmDeadArgs),
    /// Take a node out of the cluster, and wait until it is gone
    ///
    /// What it runs is stopped there and started elsewhere; then it loses its vote, and its agent ends. Its name is free
    /// then: a host that joins under it is a new node.
    Remove(RemoveArgs),
    /// Let a host that was made anew take the place of the old one, and wait until it has
    ///
    /// The old one is removed as a dead one is: nothing of it runs any more, and what it ran is started elsewhere at once.
    /// Nobody checks that, but that it does not answer. The new one is a new node with the same name.
    Replace(ReplaceArgs),
}

#[derive(Args, Debug)]
pub struct DrainArgs {
    /// The node's name
    name: NodeName,
    /// Give up the volumes that it has: what they belong to starts elsewhere without them
    #[arg(long)]
    abandon_volumes: bool,
    /// Let it be used again by itself once its host has booted, unless it was cordoned or drained before
    #[arg(long)]
    until_boot: bool,
    /// Wait no longer than this, such as 90s or 10m; the node goes on being drained
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Don't wait
    #[arg(long, conflicts_with = "timeout")]
    no_wait: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Args, Debug)]
pub struct ConfirmDeadArgs {
    /// The node's name
    name: NodeName,
    /// Give up the volumes that it has: what they belong to starts elsewhere without them
    #[arg(long)]
    abandon_volumes: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// The node's name
    name: NodeName,
    /// It is gone for good, and nothing runs on it any more: what it ran is started elsewhere at once
    ///
    /// Nobody checks that. If it isn't so, its VMs run twice.
    #[arg(long)]
    dead: bool,
    /// Give up the volumes that it has
    #[arg(long)]
    abandon_volumes: bool,
    /// Don't wait
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Args, Debug)]
pub struct ReplaceArgs {
    /// The name of both
    name: NodeName,
    /// Give up the volumes that the old one had
    #[arg(long)]
    abandon_volumes: bool,
    #[command(flatten)]
    socket: Socket,
}

pub async fn ask(verb: NodeVerb) -> Asked {
    match verb {
        NodeVerb::Ls { reading } => print(&show::nodes(&get_status(&reading).await?.nodes, look())),
        NodeVerb::Show { name, reading } => show_one(&reading, &name).await,
        NodeVerb::Cordon { name, socket } => {
            set_availability(&name, &socket.socket, proto::Availability::Cordoned, false).await?;
            print(&format!("nothing is placed on {name} any more; what it runs runs on\n"))
        }
        NodeVerb::Uncordon { name, socket } => {
            set_availability(&name, &socket.socket, proto::Availability::Active, false).await?;
            print(&format!("{name} is used again\n"))
        }
        NodeVerb::Drain(args) => drain(&args).await,
        NodeVerb::ConfirmDead(args) => confirm_dead(&args).await,
        NodeVerb::Remove(args) => remove(&args).await,
        NodeVerb::Replace(args) => replace(&args).await,
    }
}

async fn show_one(reading: &Reading, name: &str) -> Asked {
    let reply = get_status(reading).await?;
    let node = reply.nodes.iter().find(|node| node.name == name);
    let node = node.ok_or_else(|| AskError::Unknown { kind: "node", name: name.to_owned() })?;
    print(&show::node(node, &reply.instances, look()))
}

async fn set_availability(
    name: &NodeName,
    socket: &Path,
    availability: proto::Availability,
    abandon_volumes: bool,
) -> Result<Client, AskError> {
    let mut client = connect(socket).await.map_err(AskError::Connect)?;
    let (name, availability) = (name.to_string(), availability.into());
    let request = proto::SetAvailabilityRequest { name, availability, abandon_volumes };
    client.set_availability(request).await.map_err(AskError::Refused)?;
    Ok(client)
}

async fn drain(args: &DrainArgs) -> Asked {
    let DrainArgs { name, abandon_volumes, until_boot, timeout, no_wait, socket } = args;
    let wanted = if *until_boot { proto::Availability::Rebooting } else { proto::Availability::Draining };
    let client = set_availability(name, &socket.socket, wanted, *abandon_volumes).await?;
    if *no_wait {
        return print(&format!("{name} is being drained\n"));
    }
    let emptied = format!("{name} is empty");
    let watched = watch(|status| left_on(name, status), client, &socket.socket, &emptied);
    let Some(limit) = timeout else { return watched.await };
    let too_long = |_| AskError::NotDrained { name: name.to_string(), seconds: limit.as_secs() };
    tokio::time::timeout(*limit, watched).await.map_err(too_long)?
}

/// Empties a node until its host has booted, while there is a quorum to do so. What ends the wait before it is empty is the inner
/// error: it can be asked for again.
pub async fn empty_until_boot(name: &NodeName, socket: &Path) -> Result<Asked, AskError> {
    // A proposal would wait for longer, and the host with it.
    let without_quorum = |_| Err(AskError::Overtaken(NO_QUORUM.to_owned()));
    tokio::time::timeout(ELECTION, see_quorum(socket)).await.unwrap_or_else(without_quorum)?;
    let client = set_availability(name, socket, proto::Availability::Rebooting, false).await?;
    let left = |status: &proto::StatusReply| match &status.cluster {
        Some(cluster) if cluster.quorum => left_on(name, status),
        _ => Left::Never(NO_QUORUM.to_owned()),
    };
    Ok(watch(left, client, socket, &format!("{name} is empty")).await)
}

/// Until this host's agent knows of a leader that a quorum has elected.
async fn see_quorum(socket: &Path) -> Result<(), AskError> {
    let request = proto::StatusRequest { freshness: proto::Freshness::Stale.into() };
    let mut client = connect(socket).await.map_err(AskError::Connect)?;
    let mut replies = client.watch_status(request).await.map_err(AskError::Refused)?.into_inner();
    while let Some(reply) = replies.message().await.map_err(AskError::Refused)? {
        if reply.cluster.is_some_and(|cluster| cluster.quorum) {
            return Ok(());
        }
    }
    Err(AskError::Ended { path: socket.to_owned() })
}

/// What a node that is drained has still.
fn left_on(name: &NodeName, status: &proto::StatusReply) -> Left {
    let Some(member) = status.nodes.iter().find(|member| member.name == name.as_str()) else {
        return Left::Never(format!("{name} is no node of the cluster any more"));
    };
    if !matches!(&*member.availability, "draining" | "rebooting") {
        return Left::Never(format!("{name} isn't drained any more: somebody has made it {}", member.availability));
    }
    held_by(member, status).map_or(Left::Nothing, Left::Still)
}

/// What a node that is emptied has still, and why, unless it has nothing.
fn held_by(member: &proto::Node, status: &proto::StatusReply) -> Option<String> {
    let there: Vec<_> = status.instances.iter().filter(|instance| instance.node == member.name).collect();
    let tasks = (member.held as usize).saturating_sub(there.len());
    let held = format!("{} and {}", show::count(there.len(), "instance"), show::count(tasks, "task"));
    let mut text = format!("{} still has {held}", member.name);
    for instance in there.iter().filter(|instance| !instance.reason.is_empty()) {
        let _ = write!(text, "; {} is {}: {}", instance.name, instance.state, instance.reason);
    }
    (member.held > 0).then_some(text)
}

async fn confirm_dead(args: &ConfirmDeadArgs) -> Asked {
    let ConfirmDeadArgs { name, abandon_volumes, socket } = args;
    let mut client = connect(&socket.socket).await.map_err(AskError::Connect)?;
    let request = proto::ConfirmDeadRequest { name: name.to_string(), abandon_volumes: *abandon_volumes };
    client.confirm_dead(request).await.map_err(AskError::Refused)?;
    let but = if *abandon_volumes { "" } else { ", except what has volumes there" };
    print(&format!("{name} is dead: what it ran starts elsewhere{but}\n"))
}

async fn remove(args: &RemoveArgs) -> Asked {
    let RemoveArgs { name, dead, abandon_volumes, no_wait, socket } = args;
    let mut client = connect(&socket.socket).await.map_err(AskError::Connect)?;
    let request = proto::RemoveNodeRequest { name: name.to_string(), dead: *dead, abandon_volumes: *abandon_volumes };
    let node = client.remove_node(request).await.map_err(AskError::Refused)?.into_inner().node;
    if *no_wait {
        return print(&format!("{name} is being removed\n"));
    }
    let left = |status: &proto::StatusReply| {
        let Some(member) = status.nodes.iter().find(|member| member.id == node) else { return Left::Nothing };
        Left::Still(held_by(member, status).unwrap_or_else(|| format!("{name} is empty, and is {}", member.role)))
    };
    watch(left, client, &socket.socket, &format!("{name} is removed")).await
}

async fn replace(args: &ReplaceArgs) -> Asked {
    let ReplaceArgs { name, abandon_volumes, socket } = args;
    let mut client = connect(&socket.socket).await.map_err(AskError::Connect)?;
    let request = proto::RemoveNodeRequest { name: name.to_string(), dead: true, abandon_volumes: *abandon_volumes };
    let old = client.remove_node(request).await.map_err(AskError::Refused)?.into_inner().node;
    let left = |status: &proto::StatusReply| {
        let new = status.nodes.iter().find(|member| member.name == name.as_str() && member.id != old);
        match new.map(|member| &member.worker) {
            None => Left::Still(format!("the old {name} is removed; its agent on the new host is waited for")),
            Some(None) => Left::Still(format!("the new {name} has joined, and has not registered yet")),
            Some(Some(_)) => Left::Nothing,
        }
    };
    watch(left, client, &socket.socket, &format!("{name} is replaced")).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_node_that_is_emptied_it_is_said_what_it_has_still_and_why() {
        let member = |held| proto::Node { name: "alpha".to_owned(), held, ..proto::Node::default() };
        let instance = |name: &str, node: &str, reason: &str| {
            let [name, node, reason] = [name, node, reason].map(str::to_owned);
            proto::Instance { name, node, reason, state: "running".to_owned(), ..proto::Instance::default() }
        };
        let instances = vec![instance("web-0", "alpha", "it stays"), instance("web-1", "beta", "")];
        let status = proto::StatusReply { instances, ..proto::StatusReply::default() };
        let text = "alpha still has 1 instance and 1 task; web-0 is running: it stays";
        assert_eq!(held_by(&member(2), &status).as_deref(), Some(text));
        let nothing = proto::StatusReply::default();
        assert_eq!(held_by(&member(1), &nothing).as_deref(), Some("alpha still has 0 instances and 1 task"));
        assert_eq!(held_by(&member(0), &nothing), None);
    }
}
