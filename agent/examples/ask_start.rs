//! Has a VM of this host started again and again, and prints how long each start took, in milliseconds, from before the cluster
//! was asked until systemd called the unit active:
//!
//! * `ask_start blixard INSTANCE TIMES`: the agent of this host is told that the VM is to run, by one call.
//! * `ask_start etcd INSTANCE TIMES ENDPOINT`: a put to that member of etcd, then `systemctl start` of the same unit.
//!
//! For a host that runs a manual VM: see `tests/measure/asked.py`.

use std::error::Error;
use std::path::Path;
use std::process::Command;

use blixard::api::proto;
use blixard::api::proto::api_client::ApiClient;
use blixard::cli;
use blixard::units::vm_unit;
use blixard_core::types::{Failover, InstanceId};
use futures_util::StreamExt;
use rustix::time::{ClockId, clock_gettime};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use zbus::message::Type;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath};

const SOCKET: &str = "/run/blixard/api.sock";
const SYSTEMD: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";

type Done<T = ()> = Result<T, Box<dyn Error>>;

/// Whom to ask, by a connection that is open.
enum Asked {
    Blixard(ApiClient<Channel>),
    Etcd(Channel),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Done {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mut asked, instance, times) = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["blixard", instance, times] => (Asked::Blixard(cli::connect(Path::new(SOCKET)).await?), *instance, *times),
        ["etcd", instance, times, endpoint] => {
            (Asked::Etcd(Endpoint::from_shared((*endpoint).to_owned())?.connect().await?), *instance, *times)
        }
        _ => return Err("usage: ask_start blixard|etcd INSTANCE TIMES [ENDPOINT]".into()),
    };
    let instance: InstanceId = instance.parse()?;
    let unit = vm_unit(&instance, Failover::Manual);
    let bus = Connection::system().await?;
    bus.call_method(Some(SYSTEMD), PATH, Some(INTERFACE), "Subscribe", &()).await?;
    for _ in 0..times.parse()? {
        asked.stop(&instance, &unit).await?;
        let mut jobs = ended_jobs(&bus, &unit).await?;
        let begun = clock_gettime(ClockId::Monotonic);
        let begun = begun.tv_sec * 1_000_000 + begun.tv_nsec / 1000;
        asked.start(&instance, &unit).await?;
        await_start(&mut jobs).await?;
        println!("{:.3}", f64::from(i32::try_from(active_since(&unit)? - begun)?) / 1e3);
    }
    Ok(())
}

impl Asked {
    async fn start(&mut self, instance: &InstanceId, unit: &str) -> Done {
        match self {
            Self::Blixard(client) => set_running(client, instance, true).await,
            Self::Etcd(channel) => {
                put(channel, &instance.to_string()).await?;
                systemctl("start", unit)
            }
        }
    }

    /// Until nothing is left of it that the next start would wait for.
    async fn stop(&mut self, instance: &InstanceId, unit: &str) -> Done {
        match self {
            Self::Blixard(client) => {
                // Before the cluster has heard of the last start, what it says is of the stop before that.
                await_state(client, instance, "running").await?;
                set_running(client, instance, false).await?;
                await_state(client, instance, "stopped").await
            }
            Self::Etcd(_) => systemctl("stop", unit),
        }
    }
}

async fn set_running(client: &mut ApiClient<Channel>, instance: &InstanceId, running: bool) -> Done {
    client.set_vm_running(proto::SetVmRunningRequest { name: instance.vm.to_string(), running }).await?;
    Ok(())
}

async fn await_state(client: &mut ApiClient<Channel>, instance: &InstanceId, state: &str) -> Done {
    let name = instance.to_string();
    let mut statuses = client.watch_status(proto::StatusRequest::default()).await?.into_inner();
    while let Some(status) = statuses.message().await? {
        if status.instances.iter().any(|seen| seen.name == name && seen.state == state) {
            return Ok(());
        }
    }
    Err("the agent has ended".into())
}

/// The unit's jobs that end from now on. On both sides it is systemd that tells: a stream of statuses would keep the agent busy
/// while the unit starts.
async fn ended_jobs(bus: &Connection, unit: &str) -> Done<MessageStream> {
    let rule = MatchRule::builder().msg_type(Type::Signal).sender(SYSTEMD).path(PATH).interface(INTERFACE);
    let rule = rule.member("JobRemoved").arg(2, unit).build()?.into_owned();
    Ok(MessageStream::for_match_rule(rule, bus, None).await?)
}

async fn await_start(jobs: &mut MessageStream) -> Done {
    let ended = jobs.next().await.ok_or("the system bus has gone away")??;
    let (_, _, unit, result): (u32, OwnedObjectPath, String, String) = ended.body().deserialize()?;
    if result == "done" { Ok(()) } else { Err(format!("{unit} does not start: {result}").into()) }
}

async fn put(channel: &Channel, key: &str) -> Done {
    let mut client = Grpc::new(channel.clone());
    client.ready().await?;
    let request = PutRequest { key: key.into(), value: vec![7; 256] };
    let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
    client.unary(tonic::Request::new(request), PathAndQuery::from_static("/etcdserverpb.KV/Put"), codec).await?;
    Ok(())
}

fn systemctl(verb: &str, unit: &str) -> Done {
    let ended = Command::new("systemctl").args([verb, unit]).status()?;
    if ended.success() { Ok(()) } else { Err(format!("{unit} does not {verb}").into()) }
}

/// In microseconds of the monotonic clock.
fn active_since(unit: &str) -> Done<i64> {
    let show = ["show", "--property=ActiveEnterTimestampMonotonic", "--value", unit];
    let output = Command::new("systemctl").args(show).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}
