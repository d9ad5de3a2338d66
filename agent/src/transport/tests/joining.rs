//! Strangers: who proves the secret is told and admitted, and nobody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blixard_core::types::{Hash, NodeId, RaftId};
use tokio::net::TcpListener;
use tonic::Code;
use tonic::transport::Channel;

use super::super::door::{NONCE, Transcript, hash_of_names};
use super::super::proto::join_client::JoinClient;
use super::super::proto::{AdmitRequest, HelloRequest, admit_reply};
use super::super::*;
use super::rig::*;
use crate::identity::{Authority, NodeKey, Secrets, draw_cluster_id, random, stranger_client, stranger_server};

/// A joiner that keeps to the protocol only as far as a test wants.
pub struct Joiner {
    pub client: JoinClient<Channel>,
    pub leaf: Hash,
}

impl Joiner {
    pub async fn connect(to: &Node) -> Self {
        let leaf = to.transport.shared.side.borrow().tls.leaf;
        let client = JoinClient::new(channel(to.address(), stranger_client()).await.unwrap());
        Self { client, leaf }
    }

    pub async fn hello(&mut self) -> Transcript {
        self.hello_with(random::<NONCE>().to_vec()).await
    }

    /// With a nonce that may have been used before.
    pub async fn hello_with(&mut self, nonce: Vec<u8>) -> Transcript {
        let request = HelloRequest { nonce: nonce.clone(), name: "gamma".to_owned() };
        let reply = self.client.hello(request).await.unwrap().into_inner();
        Transcript {
            joiner_nonce: nonce,
            server_nonce: reply.nonce,
            leaf: self.leaf,
            joiner: "gamma".parse().unwrap(),
            server: reply.name.parse().unwrap(),
            cluster: reply.cluster,
            servers: reply.servers,
        }
    }

    pub async fn admit(&mut self, request: AdmitRequest) -> Result<admit_reply::Result, tonic::Status> {
        self.client.admit(request).await.map(|reply| reply.into_inner().result.unwrap())
    }
}

fn admit_request(transcript: &Transcript, secrets: &Secrets) -> AdmitRequest {
    let address: Address = "127.0.0.1:9".parse().unwrap();
    let request = NodeKey::generate().unwrap().request().unwrap();
    let proof = transcript.prove_joiner(secrets.current(), &address, &request).to_vec();
    AdmitRequest {
        name: "gamma".to_owned(),
        address: address.to_string(),
        request,
        proof,
        understands: 1,
        was_in: None,
        role: 0,
        declared: None,
    }
}

fn own_server() -> Server {
    server(2, "127.0.0.1:7420".parse().unwrap())
}

#[tokio::test]
async fn a_blank_host_finds_the_cluster_joins_and_is_a_member() {
    let mut cluster = Cluster::start(2).await;
    let servers: Vec<Server> =
        vec![server(0, cluster.nodes[0].address()), server(1, cluster.nodes[1].address()), own_server()];
    let answers = ask_all(&servers, &secret(1), &"gamma".parse().unwrap()).await;
    let Ok(Decision::Join(by)) = decide(&answers) else { panic!("{answers:?}") };
    assert_eq!(by, servers[..2]);

    let mut joiner = Node::blank(2, secret(1)).await;
    let own = server(2, joiner.address());
    let Joined { identity, raft, members } = join(&by[0], &secret(1), &asking(own.clone())).await.unwrap();
    assert_eq!((identity.cluster, identity.node, raft), (cluster.authority.cluster(), NodeId(9), Some(RaftId(19))));
    assert_eq!(members.get(NodeId(9)), Some(&Member { name: own.name, address: own.address, raft }));

    joiner.transport.become_member(&identity, raft).unwrap();
    let raft = raft.unwrap();
    let mut directory = cluster.directory();
    members.members().for_each(|(node, member)| directory.enter(node, member.clone()));
    directory.newest = NodeId(9);
    let directory = Arc::new(directory);
    joiner.directory.send_replace(directory.clone());
    cluster.nodes[0].directory.send_replace(directory);
    let message = |from: RaftId, to: RaftId| raft::eraftpb::Message { from: from.0, to: to.0, ..heartbeat(0, 1, 1) };
    let there = message(super::rig::raft(0), raft);
    wait_for(
        "a message at the new member",
        || cluster.nodes[0].transport.send(vec![there.clone()]),
        || joiner.steps.try_recv().is_ok(),
    )
    .await;
    let back = message(raft, super::rig::raft(0));
    wait_for(
        "a message from the new member",
        || joiner.transport.send(vec![back.clone()]),
        || cluster.nodes[0].steps.try_recv().is_ok(),
    )
    .await;
}

#[tokio::test]
async fn blank_hosts_find_each_other_and_only_the_first_listed_founds() {
    let nodes = [Node::blank(0, secret(1)).await, Node::blank(1, secret(1)).await];
    // Nobody listens at gamma's address.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let servers = [server(0, nodes[0].address()), server(1, nodes[1].address()), server(2, gone)];
    let answers = ask_all(&servers, &secret(1), &servers[0].name).await;
    assert!(matches!(answers[1].1, Answer::Blank), "{answers:?}");
    assert_eq!(decide(&answers), Ok(Decision::Found));
    let answers = ask_all(&servers, &secret(1), &servers[1].name).await;
    let Ok(Decision::Wait(reason)) = decide(&answers) else { panic!("{answers:?}") };
    assert!(reason.contains("alpha, first in cluster.servers") && reason.contains("gamma: cannot connect"), "{reason}");
    // A blank host admits nobody.
    let error = join(&servers[0], &secret(1), &asking(servers[1].clone())).await.unwrap_err();
    assert!(matches!(error, JoinError::Blank { .. }), "{error}");
}

#[tokio::test]
async fn a_host_at_the_wrong_address_or_with_another_list_does_not_count() {
    let beta = Node::blank(1, secret(1)).await;
    let mut servers = list();
    servers[0].address = beta.address().to_string().parse().unwrap();
    servers[1].address = beta.address().to_string().parse().unwrap();
    let answers = ask_all(&servers, &secret(1), &servers[2].name).await;
    let Answer::Failed(error) = &answers[0].1 else { panic!("{answers:?}") };
    assert!(error.to_string().contains("beta answered at the address of alpha"), "{error}");
    assert!(matches!(answers[1].1, Answer::Blank), "{answers:?}");

    let shorter = [servers[1].clone(), servers[2].clone()];
    assert_ne!(hash_of_names(&shorter), hash_of_names(&servers));
    let answers = ask_all(&shorter, &secret(1), &servers[2].name).await;
    let Answer::Failed(error @ AskError::OtherList { .. }) = &answers[0].1 else { panic!("{answers:?}") };
    assert!(error.to_string().contains("cluster.servers"), "{error}");
}

#[tokio::test]
async fn a_joiner_believes_nothing_of_a_server_with_another_secret() {
    for node in [Cluster::start(1).await.nodes.pop().unwrap(), Node::blank(0, secret(1)).await] {
        let alpha = server(0, node.address());
        let answers = ask_all(&[alpha.clone(), own_server()], &secret(2), &own_server().name).await;
        let Answer::Failed(error @ AskError::Secret { .. }) = &answers[0].1 else { panic!("{answers:?}") };
        assert!(error.to_string().contains("cluster.secret_file"), "{error}");
        let error = join(&alpha, &secret(2), &asking(own_server())).await.unwrap_err();
        assert!(matches!(error, JoinError::Ask { source, .. } if matches!(*source, AskError::Secret { .. })));
        assert_eq!(node.recorder.admits.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test]
async fn a_server_admits_nobody_with_another_secret() {
    let cluster = Cluster::start(1).await;
    let mut joiner = Joiner::connect(&cluster.nodes[0]).await;
    let transcript = joiner.hello().await;
    let status = joiner.admit(admit_request(&transcript, &secret(2))).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("cluster.secret_file"), "{status}");
    // The failed attempt used up the nonce: the right proof comes too late.
    let status = joiner.admit(admit_request(&transcript, &secret(1))).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    // The server's own proof proves nothing for a joiner.
    let transcript = joiner.hello().await;
    let reflected = AdmitRequest {
        proof: transcript.prove_server(secret(1).current()).to_vec(),
        ..admit_request(&transcript, &secret(1))
    };
    assert_eq!(joiner.admit(reflected).await.unwrap_err().code(), Code::PermissionDenied);
    // A proof is for what it was made for.
    let transcript = joiner.hello().await;
    let moved = AdmitRequest { address: "127.0.0.1:10".to_owned(), ..admit_request(&transcript, &secret(1)) };
    assert_eq!(joiner.admit(moved).await.unwrap_err().code(), Code::PermissionDenied);
    let transcript = joiner.hello().await;
    let renamed = AdmitRequest { name: "delta".to_owned(), ..admit_request(&transcript, &secret(1)) };
    assert_eq!(joiner.admit(renamed).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(cluster.nodes[0].recorder.admits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_replayed_admit_is_refused_on_this_and_on_any_other_connection() {
    let cluster = Cluster::start(1).await;
    let mut joiner = Joiner::connect(&cluster.nodes[0]).await;
    let transcript = joiner.hello().await;
    let request = admit_request(&transcript, &secret(1));
    let admitted = joiner.admit(request.clone()).await.unwrap();
    assert!(matches!(admitted, admit_reply::Result::Admitted(_)), "{admitted:?}");
    assert_eq!(joiner.admit(request.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
    let nonce = transcript.joiner_nonce;
    joiner.hello_with(nonce.clone()).await;
    assert_eq!(joiner.admit(request.clone()).await.unwrap_err().code(), Code::PermissionDenied);

    let mut other = Joiner::connect(&cluster.nodes[0]).await;
    assert_eq!(other.admit(request.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
    other.hello_with(nonce).await;
    assert_eq!(other.admit(request).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(cluster.nodes[0].recorder.admits.load(Ordering::Relaxed), 1);
}

/// What a joiner with these secrets joins by, at a server with those.
async fn joined_by(server_has: (u8, u8), joiner_has: (u8, u8)) -> Result<u8, JoinError> {
    let authority = Arc::new(Authority::create(draw_cluster_id()).unwrap());
    let standing = Standing::Member(authority.cluster());
    let (current, next) = server_has;
    let listen = "127.0.0.1:0".parse().unwrap();
    let node = Node::listen(0, listen, secrets(current, next), Some(authority), standing).await;
    let alpha = server(0, node.address());
    let (current, next) = joiner_has;
    join(&alpha, &secrets(current, next), &asking(own_server())).await?;
    let Some(Credential::Secret(proved)) = *node.recorder.credential.lock().unwrap() else { panic!("no secret") };
    let is_proved = |byte: &u8| secret(*byte).current().id() == proved;
    Ok((1..4).find(is_proved).expect("it is one of those"))
}

#[tokio::test]
async fn while_a_secret_is_rotated_hosts_find_the_one_that_both_have_and_the_next_one_before_the_current_one() {
    for (server_has, joiner_has, by) in [
        ((1, 1), (1, 2), 1),
        ((1, 2), (1, 1), 1),
        ((1, 2), (2, 2), 2),
        ((2, 2), (1, 2), 2),
        ((1, 2), (1, 2), 2),
        ((2, 3), (1, 2), 2),
    ] {
        assert_eq!(joined_by(server_has, joiner_has).await.unwrap(), by, "{server_has:?} {joiner_has:?}");
    }
    for (server_has, joiner_has) in [((1, 1), (2, 2)), ((2, 2), (1, 1)), ((1, 2), (3, 3)), ((2, 2), (1, 3))] {
        let error = crate::error_chain(&joined_by(server_has, joiner_has).await.unwrap_err());
        assert!(error.contains("cluster.secret_file must hold the same on both hosts"), "{error}");
    }
}

/// Passes everything on between its own TLS on both sides; what it is told it can read and change.
pub async fn man_in_the_middle(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(stranger_server().unwrap().config);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut victim = acceptor.accept(tcp).await.unwrap();
                let to: Address = to.to_string().parse().unwrap();
                let mut real = connect::connect(&to, Arc::new(stranger_client())).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut victim, &mut real).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_man_in_the_middle_with_his_own_certificate_is_noticed_by_both_sides() {
    let cluster = Cluster::start(1).await;
    let middle = man_in_the_middle(cluster.nodes[0].address()).await;
    let error = join(&server(0, middle), &secret(1), &asking(own_server())).await.unwrap_err();
    assert!(matches!(error, JoinError::Ask { source, .. } if matches!(*source, AskError::Secret { .. })));
    // A joiner that doesn't check the server's proof still can't be passed on: its own proof names the wrong channel.
    let client = JoinClient::new(channel(middle, stranger_client()).await.unwrap());
    let mut joiner = Joiner { client, leaf: Hash::of(b"the man's certificate") };
    let transcript = joiner.hello().await;
    let status = joiner.admit(admit_request(&transcript, &secret(1))).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(cluster.nodes[0].recorder.admits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_refusal_reaches_the_joiner_in_the_words_of_the_cluster() {
    let node = Node::listen(
        0,
        "127.0.0.1:0".parse().unwrap(),
        secret(1),
        None,
        Standing::Member(crate::identity::draw_cluster_id()),
    )
    .await;
    let error = join(&server(0, node.address()), &secret(1), &asking(own_server())).await.unwrap_err();
    let JoinError::Refused { reason, .. } = &error else { panic!("{error}") };
    assert_eq!(reason, "no authority");
}
