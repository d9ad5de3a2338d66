//! Replies → text for a person; pure, given the time.

use std::fmt::Write as _;

use super::table::{Cell, Colour, age, paint, render};
use crate::api::proto;

/// What the text depends on besides the reply.
#[derive(Clone, Copy)]
pub struct Look {
    /// Unix time in milliseconds.
    pub now: u64,
    pub coloured: bool,
}

impl Look {
    fn since(self, since: u64) -> String {
        if since == 0 { "-".to_owned() } else { age(self.now.saturating_sub(since)) }
    }
}

pub fn status(reply: &proto::StatusReply, look: Look) -> String {
    let cluster = reply.cluster.clone().unwrap_or_default();
    let mut text = String::new();
    let (word, colour) = if reply.problems.is_empty() { ("healthy", Colour::Good) } else { ("degraded", Colour::Bad) };
    let leader = if cluster.leader.is_empty() { "no leader".to_owned() } else { format!("leader {}", cluster.leader) };
    let quorum = if cluster.quorum { "quorum" } else { "no quorum" };
    let renewed = match cluster.renewal.as_str() {
        "" => String::new(),
        how => format!(", epoch {} ({how} {} ago)", cluster.epoch, look.since(cluster.renewed_at)),
    };
    let _ = writeln!(
        text,
        "cluster {}  {}  {leader}, term {}, {} servers, {quorum}{renewed}",
        cluster.id.get(..8).unwrap_or("?"),
        paint(word, colour, look.coloured),
        cluster.term,
        cluster.servers,
    );
    let _ = write!(text, "\n{}", nodes(&reply.nodes, look));
    if !reply.instances.is_empty() {
        let _ = write!(text, "\n{}", instances(&reply.instances, look));
    }
    if !reply.problems.is_empty() {
        let _ = writeln!(text, "\n{}", paint("problems", Colour::Bad, look.coloured));
        for problem in &reply.problems {
            let _ = writeln!(text, "  {problem}");
        }
    }
    text
}

pub fn nodes(nodes: &[proto::Node], look: Look) -> String {
    let rows: Vec<Vec<Cell>> = nodes.iter().map(|node| node_row(node, look)).collect();
    render(
        &["NODE", "ROLE", "STATE", "SINCE", "LEASE", "CPUS FREE", "MEMORY FREE", "DISK FREE", "ADDRESS"],
        &rows,
        look.coloured,
    )
}

fn node_row(node: &proto::Node, look: Look) -> Vec<Cell> {
    let worker = node.worker.clone().unwrap_or_default();
    let amount = |amount: Option<proto::Amount>, unit: &str| match amount {
        Some(amount) => format!("{}/{}{unit}", amount.free, amount.total),
        None => "-".to_owned(),
    };
    let state = match node.availability.as_str() {
        _ if !node.alive => Cell::new("silent", Colour::Bad),
        _ if node.leaving => Cell::new("leaving", Colour::Bad),
        "draining" if node.held == 0 => Cell::new("drained", Colour::Waiting),
        closed @ ("cordoned" | "draining" | "rebooting") => Cell::new(closed, Colour::Waiting),
        _ => Cell::new("alive", Colour::Good),
    };
    let lease = match node.lease.as_str() {
        "none" | "" => Cell::new("-", Colour::Plain),
        "armed" => Cell::new(format!("armed, epoch {}", node.epoch), Colour::Good),
        lease @ ("fenced" | "dead") => Cell::new(lease, Colour::Bad),
        lease => Cell::new(lease, Colour::Waiting),
    };
    vec![
        node.name.as_str().into(),
        node.role.as_str().into(),
        state,
        look.since(node.since).into(),
        lease,
        amount(worker.cpus, "").into(),
        amount(worker.memory_mib, " MiB").into(),
        amount(worker.disk_mib, " MiB").into(),
        node.address.as_str().into(),
    ]
}

pub fn instances(instances: &[proto::Instance], look: Look) -> String {
    let row = |instance: &proto::Instance| -> Vec<Cell> {
        vec![
            instance.name.as_str().into(),
            Cell::new(instance.state.as_str(), colour_of(&instance.state)),
            or_dash(&instance.node).into(),
            look.since(instance.since).into(),
            instance.restarts.to_string().into(),
            or_dash(&instance.owner).into(),
            instance.reason.as_str().into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = instances.iter().map(row).collect();
    render(&["VM", "STATE", "NODE", "SINCE", "RESTARTS", "OWNER", "REASON"], &rows, look.coloured)
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn colour_of(state: &str) -> Colour {
    match state {
        "running" | "done" => Colour::Good,
        "failed" | "unknown" => Colour::Bad,
        "stopped" => Colour::Faint,
        _ => Colour::Waiting,
    }
}

pub fn node(node: &proto::Node, instances: &[proto::Instance], look: Look) -> String {
    let worker = node.worker.clone().unwrap_or_default();
    let mut text = nodes(std::slice::from_ref(node), look);
    let labels = worker.labels.iter().map(|(key, value)| format!("{key}={value}"));
    let mut labels: Vec<String> = labels.collect();
    labels.sort();
    let _ = writeln!(text, "\nid          {}", node.id);
    let _ = writeln!(text, "system      {}", worker.system);
    let _ = writeln!(text, "kvm         {}", if worker.kvm { "yes" } else { "no" });
    let _ = writeln!(text, "hypervisors {}", worker.hypervisors.join(" "));
    let _ = writeln!(text, "labels      {}", if labels.is_empty() { "-".to_owned() } else { labels.join(" ") });
    if !worker.no_fence.is_empty() {
        let _ = writeln!(text, "no fence    {}", worker.no_fence);
    }
    let here: Vec<_> = instances.iter().filter(|instance| instance.node == node.name).cloned().collect();
    if !here.is_empty() {
        let _ = write!(text, "\n{}", self::instances(&here, look));
    }
    text
}

/// So many of a thing, in words: `1 CPU`, `2 CPUs`.
pub fn count(of: usize, thing: &str) -> String {
    format!("{of} {thing}{}", if of == 1 { "" } else { "s" })
}

pub fn vm(named: &[proto::Instance], look: Look) -> String {
    let mut text = instances(named, look);
    for instance in named {
        let _ = writeln!(
            text,
            "\n{}\n  runner      {}\n  takes       {}, {} MiB memory, {} MiB disk\n  generation  {}\n  owner       {}\n  \
             failover    {}\n  priority    {}",
            instance.name,
            instance.runner,
            count(instance.vcpus as usize, "CPU"),
            instance.memory_mib,
            instance.disk_mib,
            instance.generation,
            or_dash(&instance.owner),
            or_dash(&instance.failover),
            instance.priority
        );
    }
    text
}

pub fn explained(reply: &proto::ExplainReply, look: Look) -> String {
    let mut text = String::new();
    for explained in &reply.instances {
        let instance = explained.instance.clone().unwrap_or_default();
        let state = paint(&instance.state, colour_of(&instance.state), look.coloured);
        let place = if instance.node.is_empty() { String::new() } else { format!(" on {}", instance.node) };
        let since = if instance.since == 0 { String::new() } else { format!(" for {}", look.since(instance.since)) };
        let _ = writeln!(text, "{} is {state}{place}{since}", instance.name);
        let _ = writeln!(
            text,
            "  it takes {}, {} MiB memory, {} MiB disk",
            count(instance.vcpus as usize, "CPU"),
            instance.memory_mib,
            instance.disk_mib
        );
        if !explained.failover.is_empty() {
            let _ = writeln!(text, "  {}", explained.failover);
        }
        if instance.node.is_empty() {
            if instance.state == "stopped" {
                let _ = writeln!(text, "  {}", instance.reason);
            }
            for verdict in &explained.verdicts {
                let obstacle = if verdict.obstacle.is_empty() { "will do" } else { verdict.obstacle.as_str() };
                let _ = writeln!(text, "  {}: {obstacle}", verdict.node);
            }
            continue;
        }
        if !instance.reason.is_empty() {
            let _ = writeln!(text, "  {}", instance.reason);
        }
        let _ = writeln!(
            text,
            "  {} was chosen when it was placed (generation {}): of the nodes with room, it had the fewest replicas of {}, \
             then the most room; it stays there while that node can run it",
            instance.node, instance.generation, instance.vm
        );
        for verdict in &explained.verdicts {
            let obstacle = if verdict.obstacle.is_empty() { "could run it, too" } else { verdict.obstacle.as_str() };
            let _ = writeln!(text, "  {}: {obstacle}", verdict.node);
        }
    }
    text
}

pub fn plan(reply: &proto::PlanReply, look: Look) -> String {
    let row = |planned: &proto::Planned| -> Vec<Cell> {
        let colour = match planned.action.as_str() {
            "start" => Colour::Good,
            "stop" => Colour::Bad,
            _ => Colour::Waiting,
        };
        vec![Cell::new(planned.action.as_str(), colour), planned.instance.as_str().into(), planned.why.as_str().into()]
    };
    let rows: Vec<Vec<Cell>> = reply.planned.iter().map(row).collect();
    let mut text = String::new();
    if !rows.is_empty() {
        text = render(&["ACTION", "VM", "WHY"], &rows, look.coloured);
    }
    for line in &reply.settings {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "{} changed, {} as they are", rows.len(), reply.unchanged);
    text
}

pub fn manifests(reply: &proto::ListManifestsReply, look: Look) -> String {
    let short = |hash: &str| hash.get(..12).unwrap_or(hash).to_owned();
    let last = reply.heads.len().saturating_sub(1);
    let rows: Vec<Vec<Cell>> = reply
        .heads
        .iter()
        .enumerate()
        .map(|(position, head)| {
            let state =
                if position == last { Cell::new("head", Colour::Good) } else { Cell::new("was head", Colour::Faint) };
            vec![
                short(&head.hash).into(),
                state,
                look.since(head.at).into(),
                head.from.as_str().into(),
                head.diff.len().to_string().into(),
            ]
        })
        .chain(reply.held.iter().map(|held| {
            vec![
                short(&held.hash).into(),
                Cell::new("held", Colour::Waiting),
                look.since(held.since).into(),
                held.node.as_str().into(),
                held.diff.len().to_string().into(),
            ]
        }))
        .collect();
    let mut text = render(&["MANIFEST", "STATE", "AGE", "FROM", "CHANGES"], &rows, look.coloured);
    for held in &reply.held {
        let _ = writeln!(text, "\n{} carries {}; accepting it would change:", held.node, short(&held.hash));
        for line in &held.diff {
            let _ = writeln!(text, "  {line}");
        }
    }
    text
}

pub fn tokens(reply: &proto::ListTokensReply, look: Look) -> String {
    let row = |token: &proto::Token| -> Vec<Cell> {
        let left = token.expires.saturating_sub(look.now);
        let (state, colour) = match token.state.as_str() {
            "unused" if left > 0 => ("unused", Colour::Good),
            "unused" => ("expired", Colour::Faint),
            state => (state, Colour::Faint),
        };
        let until = if left > 0 { age(left) } else { "-".to_owned() };
        vec![
            token.id.as_str().into(),
            Cell::new(state, colour),
            look.since(token.created).into(),
            until.into(),
            or_dash(&token.role).into(),
            or_dash(&token.node).into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = reply.tokens.iter().map(row).collect();
    render(&["TOKEN", "STATE", "AGE", "EXPIRES IN", "ROLE", "NODE"], &rows, look.coloured)
}

pub fn tasks(reply: &proto::ListTasksReply, look: Look) -> String {
    let row = |task: &proto::Task| -> Vec<Cell> {
        let told = if task.exit.is_empty() { task.reason.as_str() } else { task.exit.as_str() };
        vec![
            task.name.as_str().into(),
            Cell::new(task.state.as_str(), colour_of(&task.state)),
            or_dash(&task.node).into(),
            look.since(task.since).into(),
            told.into(),
            task.command.join(" ").into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = reply.tasks.iter().map(row).collect();
    render(&["TASK", "STATE", "NODE", "SINCE", "RESULT", "COMMAND"], &rows, look.coloured)
}
