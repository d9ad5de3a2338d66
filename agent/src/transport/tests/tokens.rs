//! Hosts with a token: they know the cluster by it, and show its secret to nobody else.

use std::sync::atomic::Ordering;

use blixard_core::types::{ClusterId, NodeId, Timestamp, TokenId, TrustAnchor};

use super::super::*;
use super::rig::*;
use crate::identity::{Authority, JoinToken, PeerError, TokenSecret, draw_cluster_id, key_of};

/// A token of this authority's cluster.
fn token(cluster: ClusterId, authority: &Authority) -> JoinToken {
    JoinToken {
        anchor: TrustAnchor { cluster, authority: key_of(authority.certificate()).unwrap() },
        id: TokenId(7),
        secret: TokenSecret::draw(),
        expires: Timestamp(1_700_000_000_000),
    }
}

async fn redeem_at(node: &Node, token: &JoinToken) -> Result<Joined, JoinError> {
    let own = server(2, "127.0.0.1:7420".parse().unwrap());
    redeem(&server(0, node.address()), token, &asking(own)).await
}

#[tokio::test]
async fn a_host_with_a_token_is_given_its_certificate_and_the_cluster_no_more_than_the_hash_of_the_secret() {
    let cluster = Cluster::start(1).await;
    let token = token(cluster.authority.cluster(), &cluster.authority);
    let Joined { identity, members, .. } = redeem_at(&cluster.nodes[0], &token).await.unwrap();
    assert_eq!((identity.cluster, identity.node), (token.anchor.cluster, NodeId(9)));
    assert!(members.get(NodeId(9)).is_some());
    let shown = *cluster.nodes[0].recorder.credential.lock().unwrap();
    let JoinToken { id, secret, expires, .. } = &token;
    assert_eq!(shown, Some(Credential::Token { id: *id, secret: secret.hash(), expires: *expires }));
}

#[tokio::test]
async fn a_server_of_another_authority_or_cluster_or_of_none_is_never_shown_the_secret() {
    let cluster = Cluster::start(1).await;
    let (id, node) = (cluster.authority.cluster(), &cluster.nodes[0]);
    // Somebody who says that he is of this cluster.
    let forged = Authority::create(id).unwrap();
    let error = redeem_at(node, &token(id, &forged)).await.unwrap_err();
    let JoinError::Ask { source, .. } = error else { panic!("{error}") };
    let other =
        |error: &ConnectError| matches!(error, ConnectError::OtherPeer { source: PeerError::OtherAuthority, .. });
    assert!(matches!(&*source, AskError::Connect(error) if other(error)), "{source}");
    let other = draw_cluster_id();
    let error = redeem_at(node, &token(other, &cluster.authority)).await.unwrap_err();
    for word in [other.to_string(), id.to_string(), "alpha@".to_owned(), "cluster.token_file".to_owned()] {
        assert!(error.to_string().contains(&word), "{word}: {error}");
    }
    let blank = Node::blank(0, secret(1)).await;
    let error = redeem_at(&blank, &token(id, &cluster.authority)).await.unwrap_err();
    assert!(matches!(error, JoinError::Blank { .. }), "{error}");
    for node in [node, &blank] {
        assert_eq!(node.recorder.admits.load(Ordering::Relaxed), 0);
    }
}
