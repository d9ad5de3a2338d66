//! Certificates that change while a node runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blixard_core::types::ClusterEpoch;

use super::super::*;
use super::rig::*;
use crate::identity::{Authority, Clock, Expected, Issued, NodeIdentity, member_client};

const LATER: Clock = Clock { ahead: Duration::from_secs(80 * 24 * 3600) };
const LAST: Clock = Clock { ahead: Duration::from_secs(100 * 24 * 3600) };

/// As issued when most of the time of the first ones was over.
fn renewed(authority: &Authority, identity: &NodeIdentity) -> NodeIdentity {
    let sealed = authority.seal(secret(1).current());
    let authority = Authority::unseal(&sealed, &secret(1)).unwrap().at(LATER);
    let certificate = authority.issue(&identity.request().unwrap(), ClusterEpoch::FIRST, identity.node).unwrap();
    identity.renewed(certificate, LATER).unwrap()
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_on_new_connections_and_the_others_go_on() {
    let mut cluster = Cluster::start(2).await;
    let senders = [0, 1].map(|at| cluster.nodes[at].transport.clone());
    let mut term = 0;
    for (from, to) in [(0, 1), (1, 0)] {
        let mut send = || {
            term += 1;
            senders[from].send(vec![heartbeat(from, to, term)]);
        };
        wait_for("a message", &mut send, || cluster.nodes[to].steps.try_recv().is_ok()).await;
    }
    let opened = cluster.nodes[0].recorder.calls.load(Ordering::Relaxed);
    let next_one = renewed(&cluster.authority, &cluster.identities[1]);
    senders[1].present(&next_one).unwrap();
    let address: Address = cluster.nodes[1].address().to_string().parse().unwrap();
    let mut config = member_client(&cluster.identities[0], Expected::Node(node(1))).unwrap();
    config.time_provider = Arc::new(LATER);
    let stream = connect::connect(&address, Arc::new(config)).await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0].as_ref(), next_one.issued.certificate);
    senders[1].send(vec![heartbeat(1, 0, 1000)]);
    next("a message", &mut cluster.nodes[0].steps, |message| message.term == 1000).await;
    assert_eq!(cluster.nodes[0].recorder.calls.load(Ordering::Relaxed), opened, "no stream is opened anew");

    // One that takes only the renewed one: the first has expired by its clock.
    let address = cluster.nodes[0].address();
    cluster.nodes[0].transport.shutdown().await;
    let standing = Standing::Member(cluster.authority.cluster());
    let strict = Node::listen_at(LAST, 0, address, secret(1), Some(cluster.authority.clone()), standing).await;
    strict.transport.become_member(&cluster.identities[0], Some(raft(0))).unwrap();
    strict.directory.send_replace(Arc::new(cluster.directory()));
    cluster.nodes[0] = strict;
    let mut send = || senders[1].send(vec![heartbeat(1, 0, 2000)]);
    wait_for("a message", &mut send, || cluster.nodes[0].steps.try_recv().is_ok()).await;
}

#[tokio::test]
async fn what_was_vouched_for_by_an_authority_ends_when_that_is_trusted_no_more() {
    let mut cluster = Cluster::pair().await;
    let new = Authority::create(cluster.authority.cluster()).unwrap();
    let [old_root, new_root] = [&cluster.authority, &Arc::new(new)].map(Arc::clone);
    let authorities = |list: &[&Arc<Authority>]| list.iter().map(|one| one.certificate().to_vec()).collect::<Vec<_>>();
    let mut term = 0;
    let mut meet = async |cluster: &mut Cluster, from: usize, to: usize| {
        let sender = cluster.nodes[from].transport.clone();
        let mut send = || {
            term += 1;
            sender.send(vec![heartbeat(from, to, term)]);
        };
        wait_for("a message", &mut send, || cluster.nodes[to].steps.try_recv().is_ok()).await;
    };
    meet(&mut cluster, 0, 1).await;
    meet(&mut cluster, 1, 0).await;
    let calls = |cluster: &Cluster| [0, 1].map(|at: usize| cluster.nodes[at].recorder.calls.load(Ordering::Relaxed));
    let opened = calls(&cluster);
    let present = |at: usize, own: &NodeIdentity, list: &[&Arc<Authority>], certificate: Vec<u8>| {
        let issued = Issued { authorities: authorities(list), certificate };
        let next = own.reissued(issued, Clock::default()).unwrap();
        cluster.nodes[at].transport.present(&next).unwrap();
        next
    };
    let mut identities = cluster.identities.clone();
    for (at, own) in identities.iter_mut().enumerate() {
        *own = present(at, own, &[&old_root, &new_root], own.issued.certificate.clone());
    }
    for (at, own) in identities.iter_mut().enumerate() {
        let certificate = new_root.issue(&own.request().unwrap(), ClusterEpoch::FIRST, own.node).unwrap();
        *own = present(at, own, &[&new_root, &old_root], certificate);
    }
    meet(&mut cluster, 0, 1).await;
    meet(&mut cluster, 1, 0).await;
    assert_eq!(calls(&cluster), opened, "all is vouched for still");
    // The connections in both directions are made anew, with what is trusted.
    let last = Issued { authorities: authorities(&[&new_root]), certificate: identities[1].issued.certificate.clone() };
    let last = identities[1].reissued(last, Clock::default()).unwrap();
    cluster.nodes[1].transport.present(&last).unwrap();
    wait_for("two streams", || {}, || calls(&cluster).iter().zip(opened).all(|(now, then)| *now > then)).await;
    meet(&mut cluster, 0, 1).await;
    meet(&mut cluster, 1, 0).await;
}
