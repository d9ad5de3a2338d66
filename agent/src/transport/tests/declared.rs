//! Hosts with a key of their own: each proves that it has it to the server that it talks to, and to no other.

use std::sync::atomic::Ordering;

use blixard_core::types::{ClusterId, Hash, NodeId, TrustAnchor};
use tokio::net::TcpListener;
use tonic::Code;

use super::super::door::Transcript;
use super::super::proto::join_client::JoinClient;
use super::super::proto::{AdmitRequest, admit_reply};
use super::super::*;
use super::joining::{Joiner, man_in_the_middle};
use super::rig::*;
use crate::identity::{
    Authority, HostKey, NodeKey, PeerError, draw_cluster_id, key_of, member_server, stranger_client,
};

fn anchor(cluster: ClusterId, authority: &Authority) -> TrustAnchor {
    TrustAnchor { cluster, authority: key_of(authority.certificate()).unwrap() }
}

async fn join_at(address: std::net::SocketAddr, key: &HostKey, anchor: TrustAnchor) -> Result<Joined, JoinError> {
    let own = server(2, "127.0.0.1:7420".parse().unwrap());
    join_declared(&server(0, address), key, anchor, &asking(own)).await
}

/// What a host says that has `key`, and names `declared`.
fn admit_request(transcript: &Transcript, key: &HostKey, declared: PublicKey) -> AdmitRequest {
    let address: Address = "127.0.0.1:9".parse().unwrap();
    let request = NodeKey::generate().unwrap().request().unwrap();
    AdmitRequest {
        name: "gamma".to_owned(),
        proof: transcript.sign_joiner(key, &address, &request),
        address: address.to_string(),
        request,
        understands: 1,
        was_in: None,
        role: 0,
        declared: Some(declared.to_string()),
    }
}

#[tokio::test]
async fn a_declared_host_is_given_its_certificate_and_the_cluster_is_told_its_key() {
    let (cluster, key) = (Cluster::start(1).await, host_key());
    let anchor = anchor(cluster.authority.cluster(), &cluster.authority);
    let Joined { identity, members, .. } = join_at(cluster.nodes[0].address(), &key, anchor).await.unwrap();
    assert_eq!((identity.cluster, identity.node), (anchor.cluster, NodeId(9)));
    assert!(members.get(NodeId(9)).is_some());
    assert_eq!(*cluster.nodes[0].recorder.credential.lock().unwrap(), Some(Credential::Key(key.public())));
    let elsewhere = Server { name: "beta".parse().unwrap(), ..server(0, cluster.nodes[0].address()) };
    let own = server(2, "127.0.0.1:7420".parse().unwrap());
    let error = join_declared(&elsewhere, &key, anchor, &asking(own)).await.unwrap_err();
    assert!(crate::error_chain(&error).contains("alpha answered at the address of beta"), "{error}");
}

#[tokio::test]
async fn a_server_of_another_authority_or_cluster_or_of_none_is_told_nothing() {
    let (cluster, key) = (Cluster::start(1).await, host_key());
    let (id, address) = (cluster.authority.cluster(), cluster.nodes[0].address());
    // Somebody who says that he is of this cluster.
    let forged = member_server(&Authority::create(id).unwrap().identify(NodeId(1)).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let his = listener.local_addr().unwrap();
    let heard = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(forged.config).accept(tcp).await.is_ok()
    });
    let error = join_at(his, &key, anchor(id, &cluster.authority)).await.unwrap_err();
    let other = crate::error_chain(&error);
    assert!(other.contains(&PeerError::OtherAuthority.to_string()) && other.contains("cluster.authority"), "{other}");
    assert!(!heard.await.unwrap(), "it ended within TLS");
    let other = draw_cluster_id();
    let error = join_at(address, &key, anchor(other, &cluster.authority)).await.unwrap_err();
    for word in [other.to_string(), id.to_string(), "alpha@".to_owned(), "cluster.authority is of".to_owned()] {
        assert!(error.to_string().contains(&word), "{word}: {error}");
    }
    let blank = Node::blank(0, secret(1)).await;
    let error = join_at(blank.address(), &key, anchor(id, &cluster.authority)).await.unwrap_err();
    assert!(matches!(error, JoinError::Blank { .. }), "{error}");
    for node in [&cluster.nodes[0], &blank] {
        assert_eq!(node.recorder.admits.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test]
async fn who_does_not_have_the_key_that_it_names_or_signed_something_else_is_refused() {
    let (cluster, key, other) = (Cluster::start(1).await, host_key(), host_key());
    let mut joiner = Joiner::connect(&cluster.nodes[0]).await;
    let foreign = NodeKey::generate().unwrap().request().unwrap();
    let transcript = joiner.hello().await;
    let status = joiner.admit(admit_request(&transcript, &other, key.public())).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let changes: [&dyn Fn(AdmitRequest) -> AdmitRequest; 5] = [
        &|request| AdmitRequest { address: "127.0.0.1:10".to_owned(), ..request },
        &|request| AdmitRequest { name: "delta".to_owned(), ..request },
        &|request| AdmitRequest { request: foreign.clone(), ..request },
        &|request| AdmitRequest { proof: Vec::new(), ..request },
        &|request| AdmitRequest { declared: None, ..request },
    ];
    for change in changes {
        let transcript = joiner.hello().await;
        let request = change(admit_request(&transcript, &key, key.public()));
        assert_eq!(joiner.admit(request).await.unwrap_err().code(), Code::PermissionDenied);
    }
    let transcript = joiner.hello().await;
    let request = admit_request(&transcript, &key, key.public());
    let unreadable = AdmitRequest { declared: Some("a key".to_owned()), ..request };
    assert_eq!(joiner.admit(unreadable).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(cluster.nodes[0].recorder.admits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_replayed_signature_is_refused_on_this_and_on_any_other_connection_and_at_any_other_server() {
    let (cluster, key) = (Cluster::start(2).await, host_key());
    let mut joiner = Joiner::connect(&cluster.nodes[0]).await;
    let transcript = joiner.hello().await;
    let request = admit_request(&transcript, &key, key.public());
    let admitted = joiner.admit(request.clone()).await.unwrap();
    assert!(matches!(admitted, admit_reply::Result::Admitted(_)), "{admitted:?}");
    assert_eq!(joiner.admit(request.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
    let nonce = transcript.joiner_nonce;
    joiner.hello_with(nonce.clone()).await;
    assert_eq!(joiner.admit(request.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    for node in &cluster.nodes {
        let mut other = Joiner::connect(node).await;
        other.hello_with(nonce.clone()).await;
        assert_eq!(other.admit(request.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    }
    assert_eq!(cluster.nodes[0].recorder.admits.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_is_signed_for_another_channel_is_refused() {
    let (cluster, key) = (Cluster::start(1).await, host_key());
    let middle = man_in_the_middle(cluster.nodes[0].address()).await;
    join_at(middle, &key, anchor(cluster.authority.cluster(), &cluster.authority)).await.unwrap_err();
    // Nor is a host passed on that doesn't look whom it talks to.
    let client = JoinClient::new(channel(middle, stranger_client()).await.unwrap());
    let mut joiner = Joiner { client, leaf: Hash::of(b"the man's certificate") };
    let transcript = joiner.hello().await;
    let status = joiner.admit(admit_request(&transcript, &key, key.public())).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(cluster.nodes[0].recorder.admits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_key_that_the_cluster_does_not_take_is_a_try_that_failed() {
    let (cluster, key) = (Cluster::start(1).await, host_key());
    let standing = Standing::Member(cluster.authority.cluster());
    let refusing = Node::listen(0, "127.0.0.1:0".parse().unwrap(), secret(1), None, standing).await;
    for (node, admits) in [(&cluster.nodes[0], true), (&refusing, false)] {
        let reply = async || {
            let mut joiner = Joiner::connect(node).await;
            let transcript = joiner.hello().await;
            joiner.admit(admit_request(&transcript, &key, key.public())).await
        };
        for _ in 0..20 {
            let reply = reply().await.unwrap();
            assert_eq!(matches!(reply, admit_reply::Result::Admitted(_)), admits, "{reply:?}");
        }
        let last = reply().await.map(|_| ()).map_err(|status| status.code());
        assert_eq!(last, if admits { Ok(()) } else { Err(Code::ResourceExhausted) });
    }
}
