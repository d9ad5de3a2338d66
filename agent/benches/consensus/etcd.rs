//! Three members of etcd, with TLS between them and to their clients.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};
use tonic::transport::Channel;

use crate::address::free_address;
use crate::channel::{call, connect};
use crate::load::{BYTES, Writer};
use crate::member::{MAX_WAIT, POLL};
use crate::process::Process;
use crate::slow;

pub struct Etcd {
    members: Vec<(SocketAddr, Option<Process>)>,
    tls: Arc<ClientConfig>,
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

    /// A new cluster that has a leader.
    pub async fn start(dir: &Path, slow: Option<Duration>) -> Self {
        let names = ["alpha", "beta", "gamma"];
        let [clients, peers] = [(); 2].map(|()| names.map(|_| free_address()));
        let credentials = Credentials::write(dir, &[clients, peers].concat());
        let cluster: Vec<_> = names.iter().zip(peers).map(|(name, peer)| format!("{name}=https://{peer}")).collect();
        let members = names.iter().zip(clients.iter().zip(peers)).map(|(name, (client, peer))| {
            let mut command = Command::new("etcd");
            command.stdin(Stdio::null());
            command.args(["--name", name, "--data-dir"]).arg(dir.join(name));
            for option in ["listen-client-urls", "advertise-client-urls"] {
                command.arg(format!("--{option}=https://{client}"));
            }
            for option in ["listen-peer-urls", "initial-advertise-peer-urls"] {
                command.arg(format!("--{option}=https://{peer}"));
            }
            command.arg(format!("--initial-cluster={}", cluster.join(",")));
            for prefix in ["", "peer-"] {
                command.arg(format!("--{prefix}client-cert-auth"));
                for (option, file) in [("cert", "certificate"), ("key", "key"), ("trusted-ca", "authority")] {
                    command.arg(format!("--{prefix}{option}-file={}", dir.join(file).display()));
                }
            }
            (*client, Some(slow::start(command, &dir.join(format!("{name}.log")), slow)))
        });
        let cluster = Self { members: members.collect(), tls: Arc::new(credentials.client()) };
        cluster.leader().await;
        cluster
    }

    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.members.iter().filter_map(|(_, process)| process.as_ref())
    }

    /// Where the leader listens, once all members agree who that is.
    async fn leader(&self) -> SocketAddr {
        let (begun, mut polls) = (Instant::now(), tokio::time::interval(POLL));
        loop {
            polls.tick().await;
            let mut leaders = Vec::new();
            for (address, _) in &self.members {
                leaders.extend(self.status(*address).await.map(|status| (*address, status)));
            }
            let agreed = leaders.iter().all(|(_, status)| status.leader != 0 && status.leader == leaders[0].1.leader);
            let of_leader = leaders
                .iter()
                .find(|(_, status)| status.header.as_ref().is_some_and(|header| header.member == status.leader));
            if let (true, Some((address, _)), 3) = (agreed, of_leader, leaders.len()) {
                return *address;
            }
            assert!(begun.elapsed() < MAX_WAIT, "etcd has no leader after {MAX_WAIT:?}: {leaders:?}");
        }
    }

    async fn status(&self, address: SocketAddr) -> Option<StatusResponse> {
        let channel = connect(address, self.tls.clone());
        call(&channel, "/etcdserverpb.Maintenance/Status", StatusRequest {}).await.ok()
    }

    /// Clients of the leader, over so many connections.
    pub async fn writers(&self, clients: usize, connections: usize) -> Vec<Client> {
        let leader = self.leader().await;
        let channels: Vec<_> = (0..connections).map(|_| connect(leader, self.tls.clone())).collect();
        (0..clients).map(|client| Client { channel: channels[client % connections].clone() }).collect()
    }

    pub fn stop(self) {
        for process in self.members.into_iter().filter_map(|(_, process)| process) {
            process.stop();
        }
    }
}

impl Credentials {
    fn write(dir: &Path, members: &[SocketAddr]) -> Self {
        let authority_key = KeyPair::generate().expect("a key");
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&authority_key).expect("a certificate");
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().expect("a key");
        // What calls another member has the first address of the loopback network.
        let addresses = members.iter().map(|member| member.ip().to_string()).chain(["127.0.0.1".to_owned()]);
        let mut leaf = CertificateParams::new(addresses.collect::<Vec<_>>()).expect("addresses");
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

impl Writer for Client {
    async fn write(&mut self, key: u32) -> Result<(), String> {
        let request = PutRequest { key: format!("vms/vm{key}").into_bytes(), value: vec![7; BYTES] };
        call::<_, PutResponse>(&self.channel, "/etcdserverpb.KV/Put", request).await.map(drop)
    }
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
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member: u64,
}
