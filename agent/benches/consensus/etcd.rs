//! Three members of etcd, with TLS between them and to their clients.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};
use tonic::transport::Channel;

use crate::address::free_address;
use crate::channel::{call, connect};
use crate::cluster::{self, Cluster, NAMES, Setup, Timers};
use crate::load::{BYTES, fill};
use crate::member::{MAX_WAIT, POLL};
use crate::process::Process;
use crate::slow;

/// Members that a cluster begins with.
const FIRST: usize = 3;

pub struct Etcd {
    dir: PathBuf,
    setup: Setup,
    hosts: Vec<Host>,
    tls: Arc<ClientConfig>,
}

struct Host {
    name: &'static str,
    client: SocketAddr,
    peer: SocketAddr,
    process: Option<Process>,
}

/// What all members and clients show each other, in the forms that etcd and rustls want.
struct Credentials {
    authority: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Etcd {
    /// Where its program is, if it is installed.
    pub fn version() -> Option<String> {
        let output = Command::new("etcd").arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        text.lines().next()?.strip_prefix("etcd Version: ").map(str::to_owned)
    }

    async fn status(&self, member: usize) -> Result<StatusResponse, String> {
        let channel = connect(self.hosts[member].client, self.tls.clone());
        call(&channel, "/etcdserverpb.Maintenance/Status", StatusRequest {}).await
    }

    /// The statuses of all members that answer, once those agree who leads, and the leader is one of them.
    async fn agreed(&self) -> (usize, Vec<StatusResponse>) {
        let (begun, mut polls) = (Instant::now(), tokio::time::interval(POLL));
        loop {
            polls.tick().await;
            let (mut statuses, mut leader) = (Vec::new(), None);
            for member in 0..self.hosts.len() {
                let Ok(status) = self.status(member).await else { continue };
                if status.header.as_ref().is_some_and(|header| header.member == status.leader) {
                    leader = Some(member);
                }
                statuses.push(status);
            }
            let is_agreed = statuses.iter().all(|status| status.leader == statuses[0].leader);
            if let (true, Some(leader)) = (is_agreed && statuses.len() * 2 > self.hosts.len(), leader) {
                return (leader, statuses);
            }
            assert!(begun.elapsed() < MAX_WAIT, "etcd has no leader after {MAX_WAIT:?}: {statuses:?}");
        }
    }
}

impl Cluster for Etcd {
    type Client = Client;

    async fn start(dir: &Path, setup: Setup) -> Self {
        let hosts: Vec<_> = (0..FIRST).map(Host::new).collect();
        let tls = Arc::new(Credentials::write(dir, hosts[0].client.ip()).client());
        let mut cluster = Self { dir: dir.to_owned(), setup, hosts, tls };
        (0..FIRST).for_each(|member| cluster.start_member(member));
        let (begun, mut polls) = (Instant::now(), tokio::time::interval(POLL));
        while cluster.agreed().await.1.len() < FIRST {
            assert!(begun.elapsed() < MAX_WAIT, "a member of etcd does not come up");
            polls.tick().await;
        }
        cluster
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Option<Process>> {
        self.hosts.iter_mut().map(|host| &mut host.process)
    }

    fn start_member(&mut self, member: usize) {
        let (servers, state) = if member < FIRST { (FIRST, "new") } else { (member + 1, "existing") };
        let mut command = self.hosts[member].command(&self.dir, &self.hosts[..servers], state);
        let Setup { slow, timers } = self.setup;
        if let Some(Timers { election, heartbeat }) = timers {
            command.arg(format!("--election-timeout={}", election.as_millis()));
            command.arg(format!("--heartbeat-interval={}", heartbeat.as_millis()));
        }
        let log = self.dir.join(format!("{}.log", NAMES[member]));
        self.hosts[member].process = Some(slow::start(command, &log, slow));
    }

    async fn leader(&self) -> usize {
        self.agreed().await.0
    }

    async fn term(&self) -> u64 {
        let (_, statuses) = self.agreed().await;
        statuses.iter().map(|status| status.term).max().unwrap_or(0)
    }

    fn clients(&self, member: usize, clients: usize, connections: usize) -> Vec<Client> {
        let address = self.hosts[member].client;
        let channels: Vec<_> = (0..connections).map(|_| connect(address, self.tls.clone())).collect();
        (0..clients).map(|client| Client { channel: channels[client % connections].clone() }).collect()
    }

    /// By one put each.
    async fn declare(&self, clients: Vec<Client>, count: u32, _revision: u32) -> Duration {
        let begun = Instant::now();
        assert_eq!(fill(clients, 0..count).await, count, "a put failed");
        begun.elapsed()
    }

    /// A voter at once, as `etcdctl member add` makes it.
    async fn join(&mut self) -> (usize, Instant) {
        let number = self.hosts.len();
        self.hosts.push(Host::new(number));
        let host = &self.hosts[number];
        let leader = self.client(self.leader().await);
        let request = MemberAddRequest { peers: vec![format!("https://{}", host.peer)] };
        let (asked, mut polls) = (Instant::now(), tokio::time::interval(POLL));
        let add = || call::<_, MemberAddResponse>(&leader.channel, "/etcdserverpb.Cluster/MemberAdd", request.clone());
        // It wants the members to have been connected for a while.
        while let Err(refusal) = add().await {
            assert!(asked.elapsed() < MAX_WAIT, "no member can be added: {refusal}");
            polls.tick().await;
        }
        let begun = Instant::now();
        self.start_member(number);
        (number, begun)
    }
}

impl Host {
    fn new(number: usize) -> Self {
        Self { name: NAMES[number], client: free_address(), peer: free_address(), process: None }
    }

    fn command(&self, dir: &Path, servers: &[Self], state: &str) -> Command {
        let cluster: Vec<_> = servers.iter().map(|server| format!("{}=https://{}", server.name, server.peer)).collect();
        let Self { name, client, peer, .. } = self;
        let mut command = Command::new("etcd");
        command.stdin(Stdio::null()).args(["--name", name, "--data-dir"]).arg(dir.join(name));
        for option in ["listen-client-urls", "advertise-client-urls"] {
            command.arg(format!("--{option}=https://{client}"));
        }
        for option in ["listen-peer-urls", "initial-advertise-peer-urls"] {
            command.arg(format!("--{option}=https://{peer}"));
        }
        command.arg(format!("--initial-cluster={}", cluster.join(","))).arg(format!("--initial-cluster-state={state}"));
        for prefix in ["", "peer-"] {
            command.arg(format!("--{prefix}client-cert-auth"));
            for (option, file) in [("cert", "certificate"), ("key", "key"), ("trusted-ca", "authority")] {
                command.arg(format!("--{prefix}{option}-file={}", dir.join(file).display()));
            }
        }
        command
    }
}

impl Credentials {
    /// For members that are at `ip`; what calls another one has the first address of the loopback network.
    fn write(dir: &Path, ip: IpAddr) -> Self {
        let authority_key = KeyPair::generate().expect("a key");
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&authority_key).expect("a certificate");
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().expect("a key");
        let mut leaf = CertificateParams::new([ip.to_string(), "127.0.0.1".to_owned()]).expect("addresses");
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
        for (file, text) in
            [("authority", certificate.pem()), ("certificate", leaf.pem()), ("key", key.serialize_pem())]
        {
            std::fs::write(dir.join(file), text).expect("the bench's folder can be written");
        }
        Self { authority: certificate.der().clone(), certificate: leaf.der().clone(), key: key.serialize_der() }
    }

    fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()));
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("rustls has what it needs").with_root_certificates(roots);
        let mut config = config.with_client_auth_cert(vec![self.certificate.clone()], key).expect("a pair");
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// A client of etcd.
pub struct Client {
    channel: Channel,
}

impl cluster::Client for Client {
    async fn write(&mut self, key: u32) -> Result<(), String> {
        let request = PutRequest { key: path(key), value: vec![7; BYTES] };
        call::<_, PutResponse>(&self.channel, "/etcdserverpb.KV/Put", request).await.map(drop)
    }

    async fn read(&mut self, key: u32) -> Result<bool, String> {
        let request = RangeRequest { key: path(key), serializable: true };
        let range = call::<_, RangeResponse>(&self.channel, "/etcdserverpb.KV/Range", request).await?;
        Ok(range.count == 1)
    }
}

fn path(key: u32) -> Vec<u8> {
    format!("vms/vm{key}").into_bytes()
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

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bool, tag = "7")]
    serializable: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(int64, tag = "4")]
    count: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MemberAddRequest {
    #[prost(string, repeated, tag = "1")]
    peers: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MemberAddResponse {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
    #[prost(uint64, tag = "6")]
    term: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member: u64,
}
