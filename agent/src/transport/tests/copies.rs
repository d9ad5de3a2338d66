//! Two processes that are one member.

use std::sync::atomic::Ordering;

use super::super::proto::peer_client::PeerClient;
use super::super::proto::{RaftEnd, RaftFrame};
use super::super::*;
use super::rig::*;

fn supersessions(node: &Node) -> usize {
    node.recorder.supersessions.load(Ordering::Relaxed)
}

/// Another process of the second member, which knows the first.
async fn copy(cluster: &Cluster) -> Node {
    let started = cluster.start_node(1, "127.0.0.1:0".parse().unwrap()).await;
    started.directory.send_replace(Arc::new(cluster.directory()));
    started
}

/// Waits until the first member hears this process of the second.
async fn is_heard(cluster: &mut Cluster, process: &Transport, term: u64) {
    let first = &mut cluster.nodes[0].steps;
    let send = || process.send(vec![heartbeat(1, 0, term)]);
    wait_for("a message", send, || first.try_recv().is_ok_and(|message| message.term == term)).await;
}

#[tokio::test]
async fn who_goes_on_beside_a_copy_of_its_disk_is_told_so_and_not_heard_any_more() {
    let mut cluster = Cluster::pair().await;
    let original = cluster.nodes[1].transport.clone();
    is_heard(&mut cluster, &original, 1).await;
    let copied = copy(&cluster).await;
    is_heard(&mut cluster, &copied.transport, 2).await;
    wait_for("it to hear it", || original.send(vec![heartbeat(1, 0, 3)]), || supersessions(&cluster.nodes[1]) > 1)
        .await;
    while let Ok(message) = cluster.nodes[0].steps.try_recv() {
        assert_eq!(message.term, 2, "what it says is refused");
    }
    assert_eq!(supersessions(&copied), 0);
}

#[tokio::test]
async fn who_starts_again_and_calls_as_often_as_it_likes_is_heard() {
    let mut cluster = Cluster::pair().await;
    let original = cluster.nodes[1].transport.clone();
    is_heard(&mut cluster, &original, 1).await;
    original.shutdown().await;
    let again = copy(&cluster).await;
    is_heard(&mut cluster, &again.transport, 2).await;
    // Its stream ends and begins anew, as does that of whoever follows it.
    for term in 3..6 {
        again.directory.send_replace(Arc::default());
        wait_for("no link", || (), || again.transport.shared.links.channel(node(0)).is_none()).await;
        again.directory.send_replace(Arc::new(cluster.directory()));
        is_heard(&mut cluster, &again.transport, term).await;
    }
    assert_eq!(supersessions(&again) + supersessions(&cluster.nodes[1]), 0);
}

#[tokio::test]
async fn a_stream_of_a_process_that_is_gone_comes_late_and_silences_nobody() {
    let mut cluster = Cluster::pair().await;
    let running = cluster.nodes[1].transport.clone();
    is_heard(&mut cluster, &running, 1).await;
    let introduction = cluster.directory().get(node(1)).unwrap().encode(node(1));
    let late = RaftFrame {
        cluster: cluster.authority.cluster().to_string(),
        sender: node(1).0,
        introduction: Some(introduction),
        incarnation: 77,
        ..RaftFrame::default()
    };
    let mut client = PeerClient::new(cluster.call(1, 0).await);
    let ended = client.raft(tokio_stream::iter([late])).await.unwrap().into_inner();
    assert!(matches!(ended, RaftEnd { prove: 1.., superseded: false, .. }), "{ended:?}");
    is_heard(&mut cluster, &running, 2).await;
    assert_eq!(supersessions(&cluster.nodes[1]), 0);
}
