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
use rustix::time::{ClockId, clock_gettime};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

const SOCKET: &str = "/run/blixard/api.sock";

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
    for _ in 0..times.parse()? {
        asked.stop(&instance, &unit).await?;
        let begun = clock_gettime(ClockId::Monotonic);
        let begun = begun.tv_sec * 1_000_000 + begun.tv_nsec / 1000;
        asked.start(&instance, &unit).await?;
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

    async fn stop(&mut self, instance: &InstanceId, unit: &str) -> Done {
        match self {
            Self::Blixard(client) => set_running(client, instance, false).await,
            Self::Etcd(_) => systemctl("stop", unit),
        }
    }
}

/// Until it does, or doesn't.
async fn set_running(client: &mut ApiClient<Channel>, instance: &InstanceId, running: bool) -> Done {
    let name = instance.vm.to_string();
    client.set_vm_running(proto::SetVmRunningRequest { name, running }).await?;
    let (name, wanted) = (instance.to_string(), if running { "running" } else { "stopped" });
    let mut statuses = client.watch_status(proto::StatusRequest::default()).await?.into_inner();
    while let Some(status) = statuses.message().await? {
        if status.instances.iter().any(|seen| seen.name == name && seen.state == wanted) {
            return Ok(());
        }
    }
    Err("the agent has ended".into())
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
