//! Between members: messages, forwarded commands, and who is refused them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blixard_core::driver::wire;
use blixard_core::types::{NodeEpoch, NodeId};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tonic::Code;

use super::super::link::FIRST_BACKOFF;
use super::super::proto::peer_client::PeerClient;
use super::super::proto::{BeatRequest, FollowRequest, ForwardRequest, RaftFrame, follow_reply};
use super::super::*;
use super::rig::*;
use crate::identity::{Authority, Expected, member_client, stranger_client};

fn frame(cluster: &Cluster, sender: usize, messages: &[raft::eraftpb::Message]) -> RaftFrame {
    RaftFrame {
        cluster: cluster.authority.cluster().to_string(),
        sender: node(sender).0,
        messages: messages.iter().map(wire::encode_message).collect(),
        ..RaftFrame::default()
    }
}

async fn stream(client: &mut PeerClient<tonic::transport::Channel>, frame: RaftFrame) -> tonic::Status {
    let call = client.raft(tokio_stream::iter([frame]));
    tokio::time::timeout(MAX_WAIT, call).await.unwrap().unwrap_err()
}

#[tokio::test]
async fn members_exchange_messages_in_order_over_mutual_tls() {
    let mut cluster = Cluster::start(2).await;
    let mut term = 0;
    for (from, to) in [(0, 1), (1, 0)] {
        let sender = cluster.nodes[from].transport.clone();
        // The directory may not have reached the links yet: Raft, too, sends again.
        wait_for(
            "the first message",
            || {
                term += 1;
                sender.send(vec![heartbeat(from, to, term)]);
            },
            || cluster.nodes[to].steps.try_recv().is_ok(),
        )
        .await;
        // From a thread that tokio knows nothing of, as Raft's is.
        let messages: Vec<_> = (0..1000).map(|n| heartbeat(from, to, 1_000_000 + n)).collect();
        std::thread::spawn(move || sender.send(messages)).join().unwrap();
        for n in 0..1000 {
            let steps = &mut cluster.nodes[to].steps;
            let message = next("message", steps, |message| message.term >= 1_000_000).await;
            assert_eq!(message.term, 1_000_000 + n);
        }
    }
}

#[tokio::test]
async fn a_message_from_somebody_else_than_the_certificate_is_refused() {
    let mut cluster = Cluster::start(3).await;
    let mut client = PeerClient::new(cluster.call(1, 0).await);
    let status = stream(&mut client, frame(&cluster, 1, &[heartbeat(2, 0, 1)])).await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains("from 13, and node 2 is 12"), "{status}");
    let status = stream(&mut client, frame(&cluster, 2, &[heartbeat(2, 0, 1)])).await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    // One bad message takes the good ones of its frame with it.
    let status = stream(&mut client, frame(&cluster, 1, &[heartbeat(1, 0, 1), heartbeat(2, 0, 1)])).await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(cluster.nodes[0].steps.try_recv().is_err());
}

#[tokio::test]
async fn without_a_certificate_there_are_no_messages_and_no_commands() {
    let mut cluster = Cluster::start(2).await;
    let mut client = PeerClient::new(channel(cluster.nodes[0].address(), stranger_client()).await.unwrap());
    let status = stream(&mut client, frame(&cluster, 1, &[heartbeat(1, 0, 1)])).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let status = client.forward(ForwardRequest { command: vec![1], timeout_ms: 1000 }).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(cluster.nodes[0].steps.try_recv().is_err());
    assert_eq!(cluster.nodes[0].recorder.forwards.load(Ordering::Relaxed), 0);

    let blank = Node::blank(2, secret(1)).await;
    let mut client = PeerClient::new(channel(blank.address(), stranger_client()).await.unwrap());
    let status = client.forward(ForwardRequest { command: vec![1], timeout_ms: 1000 }).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
}

#[tokio::test]
async fn a_member_of_another_cluster_is_refused_on_both_sides() {
    let cluster = Cluster::start(2).await;
    let other = Cluster::start(2).await;
    // It calls us: its own check is switched off, so that it is ours that refuses.
    for foreign in
        [&other.identities[1], &Authority::create(cluster.authority.cluster()).unwrap().identify(node(1)).unwrap()]
    {
        let mut config = stranger_client();
        config.client_auth_cert_resolver =
            member_client(foreign, Expected::AnyMember).unwrap().client_auth_cert_resolver;
        let called = match channel(cluster.nodes[0].address(), config).await {
            Ok(channel) => {
                let mut client = PeerClient::new(channel);
                client.forward(ForwardRequest::default()).await.map(drop).map_err(|status| status.to_string())
            }
            Err(error) => Err(error),
        };
        called.unwrap_err();
    }
    assert_eq!(cluster.nodes[0].recorder.forwards.load(Ordering::Relaxed), 0);
    // We call it.
    let config = member_client(&cluster.identities[1], Expected::Node(node(0))).unwrap();
    let error = channel(other.nodes[0].address(), config).await.unwrap_err();
    let (found, own) = (other.authority.cluster(), cluster.authority.cluster());
    assert!(error.contains(&format!("of cluster {found}, and this is cluster {own}")), "{error}");
    // One of ours, but not the one that was called.
    let config = member_client(&cluster.identities[0], Expected::Node(node(2))).unwrap();
    let error = channel(cluster.nodes[1].address(), config).await.unwrap_err();
    assert!(error.contains("node 2's, and node 3 was called"), "{error}");
}

/// The directory of one that knows nobody else.
fn only(all: &Directory, at: usize) -> Directory {
    Directory::of([(node(at), all.get(node(at)).unwrap().clone())])
}

/// The directory in which all but this one were removed.
fn left(cluster: &Cluster, at: usize) -> Directory {
    let mut directory = only(&cluster.directory(), at);
    directory.newest = cluster.directory().newest;
    directory
}

#[tokio::test]
async fn who_is_not_in_the_directory_is_refused() {
    let cluster = Cluster::start(2).await;
    let known = only(&cluster.directory(), 0);
    cluster.nodes[0].directory.send_replace(Arc::new(known));
    let mut client = PeerClient::new(cluster.call(1, 0).await);
    let status = stream(&mut client, frame(&cluster, 1, &[heartbeat(1, 0, 1)])).await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let status = client.forward(ForwardRequest { command: vec![1], timeout_ms: 1000 }).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains("node 2 is not in the directory"), "{status}");
}

#[tokio::test]
async fn who_is_new_to_a_member_says_who_it_is_and_nobody_else_is_asked() {
    let mut cluster = Cluster::pair().await;
    // Its own stream has begun by then.
    let process = cluster.nodes[1].transport.clone();
    let steps = &mut cluster.nodes[0].steps;
    wait_for("a message", || process.send(vec![heartbeat(1, 0, 1)]), || steps.try_recv().is_ok()).await;
    let all = cluster.directory();
    let own = all.get(node(1)).unwrap().encode(node(1));
    let introduced = || cluster.nodes[0].recorder.introduced.lock().unwrap().clone();
    let mut client = PeerClient::new(cluster.call(1, 0).await);
    let incarnation = process.shared.incarnation;
    let says = |introduction| RaftFrame { introduction: Some(introduction), incarnation, ..frame(&cluster, 1, &[]) };
    // It is known, or speaks for another.
    client.raft(tokio_stream::iter([says(own.clone())])).await.unwrap();
    let known = only(&all, 0);
    cluster.nodes[0].directory.send_replace(Arc::new(known));
    stream(&mut client, says(all.get(node(1)).unwrap().encode(node(2)))).await;
    assert_eq!(introduced(), []);
    stream(&mut client, says(own)).await;
    assert_eq!(introduced(), [(node(1), all.get(node(1)).unwrap().clone())]);
}

#[tokio::test]
async fn a_member_that_became_a_server_after_what_is_known_says_so_by_its_newer_raft_id() {
    let cluster = Cluster::start(2).await;
    let member = Member { raft: Some(RaftId(20)), ..cluster.directory().get(node(1)).unwrap().clone() };
    let mut client = PeerClient::new(cluster.call(1, 0).await);
    let hello = RaftFrame { introduction: Some(member.encode(node(1))), ..frame(&cluster, 1, &[]) };
    client.raft(tokio_stream::iter([hello])).await.unwrap();
    assert_eq!(*cluster.nodes[0].recorder.introduced.lock().unwrap(), [(node(1), member)]);
}

/// The directory in which a member is no server any more.
fn without_server(cluster: &Cluster, at: usize) -> Arc<Directory> {
    let mut directory = cluster.directory();
    let member = Member { raft: None, ..directory.get(node(at)).unwrap().clone() };
    directory.enter(node(at), member);
    Arc::new(directory)
}

#[tokio::test]
async fn who_is_no_server_any_more_is_told_so_at_once_and_whenever_it_calls() {
    let cluster = Cluster::pair().await;
    let told = || cluster.nodes[1].recorder.dismissals.load(Ordering::Relaxed);
    wait_for("its stream", || (), || cluster.nodes[0].recorder.calls.load(Ordering::Relaxed) > 0).await;
    assert_eq!(told(), 0);
    // Its stream is open, and nothing comes on it.
    cluster.nodes[0].directory.send_replace(without_server(&cluster, 1));
    wait_for("its link to hear it", || (), || told() > 0).await;
    wait_for("it to hear it again", || (), || told() > 1).await;
    let mut client = PeerClient::new(cluster.call(1, 0).await);
    let status = stream(&mut client, frame(&cluster, 1, &[heartbeat(1, 0, 1)])).await;
    assert!(status.message().contains("node 2 is no server of this cluster"), "{status}");
    assert_eq!(cluster.nodes[1].recorder.removals.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_member_that_is_no_server_takes_no_streams_and_opens_none() {
    let mut cluster = Cluster::start(1).await;
    let (identity, listen) = (cluster.authority.identify(node(1)).unwrap(), "127.0.0.1:0".parse().unwrap());
    let standing = Standing::Member(cluster.authority.cluster());
    let follower = Node::listen(1, listen, secret(1), None, standing).await;
    follower.transport.become_member(&identity, None).unwrap();
    cluster.identities.push(identity);
    cluster.nodes.push(follower);
    cluster.nodes[1].directory.send_replace(Arc::new(cluster.directory().only_servers()));
    let mut client = PeerClient::new(cluster.call(0, 1).await);
    let status = stream(&mut client, frame(&cluster, 0, &[heartbeat(0, 1, 1)])).await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let follower = &cluster.nodes[1].transport;
    wait_for("a way to the server", || (), || follower.shared.links.channel(node(0)).is_some()).await;
    // Whose id is nobody's by what it knows hears that at least, and who has a newer one doesn't.
    let says = |raft| {
        let member = Member { raft: Some(RaftId(raft)), ..cluster.directory().get(node(0)).unwrap().clone() };
        tokio_stream::iter([RaftFrame { introduction: Some(member.encode(node(0))), ..frame(&cluster, 0, &[]) }])
    };
    assert!(client.raft(says(3)).await.unwrap().into_inner().dismissed);
    for raft in [raft(0).0, 30] {
        assert_eq!(client.raft(says(raft)).await.unwrap_err().code(), Code::Unavailable);
    }
    // It can be used, and it was not.
    assert_eq!(follower.beat(node(0)).await.unwrap().applied, 7);
    assert_eq!(cluster.nodes[0].recorder.calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_lease_is_renewed_for_who_asks_or_it_hears_why_not() {
    let cluster = Cluster::pair().await;
    let asking = &cluster.nodes[1].transport;
    let renew = async |to, epoch| asking.renew_lease(node(to), NodeEpoch(epoch)).await;
    assert_eq!(renew(0, 2).await, Ok(NodeId(9)));
    assert_eq!(renew(0, 1).await, Err(LeaseError::NoLeader));
    assert_eq!(renew(0, 0).await, Err(LeaseError::Denied("node 2 has no lease".to_owned())));
    assert!(matches!(renew(5, 2).await, Err(LeaseError::Unreachable { .. })));
    let unanswered = renew(0, UNANSWERED.0).await.unwrap_err().to_string();
    assert!(unanswered.contains("no answer in time"), "{unanswered}");
    assert_eq!(renew(0, 2).await, Ok(NodeId(9)), "it waits for no answer but its own");
}

#[tokio::test]
async fn what_many_say_to_one_server_is_passed_on_to_another_and_by_nobody_else() {
    let cluster = Cluster::pair().await;
    let passing = &cluster.nodes[1].transport;
    let heartbeats = [None, Some(NodeEpoch(3))].map(|epoch| Heartbeat { node: node(7), epoch });
    let denials = passing.pass_heartbeats(node(0), &heartbeats).await.unwrap();
    assert_eq!(denials, [None, Some("8 at 3".to_owned())]);
    assert_eq!(passing.pass_heartbeats(node(0), &[]).await, Err(LeaseError::NoLeader));
    let mut directory = cluster.directory();
    let follower = Member { raft: None, ..directory.get(node(1)).unwrap().clone() };
    directory = Directory::of([(node(0), directory.get(node(0)).unwrap().clone()), (node(1), follower)]);
    cluster.nodes[0].directory.send_replace(Arc::new(directory));
    let refused = passing.pass_heartbeats(node(0), &heartbeats).await.unwrap_err();
    assert!(refused.to_string().contains("node 2 is no server"), "{refused}");
}

#[tokio::test]
async fn who_follows_is_told_what_it_has_to_do_and_where_the_servers_are() {
    let cluster = Cluster::pair().await;
    let (server, follower) = (&cluster.nodes[0].recorder, &cluster.nodes[1].transport);
    let refused = follower.follow(node(0)).await.err().unwrap();
    assert!(refused.to_string().contains("nothing for node 2"), "{refused}");
    *server.assignments.lock().unwrap() = Some(vec![vec![1], vec![2; 1000]]);
    let mut assignments = follower.follow(node(0)).await.unwrap();
    assert_eq!(assignments.next().await.unwrap(), [1]);
    assert_eq!(assignments.next().await.unwrap().len(), 1000);
    *server.servers.lock().unwrap() = cluster.directory();
    let beat = follower.beat(node(0)).await.unwrap();
    assert_eq!((beat.leader, beat.applied), (Some(node(1)), 7));
    assert_eq!(beat.servers, cluster.directory().only_servers());
    let unknown = follower.beat(node(5)).await.unwrap_err();
    assert!(unknown.to_string().contains("not in the directory"), "{unknown}");
    cluster.nodes[0].transport.shutdown().await;
    assert!(matches!(assignments.next().await, Err(FollowError::Unreachable { .. })));
    assert!(matches!(follower.beat(node(0)).await, Err(FollowError::Unreachable { .. })));
}

#[tokio::test]
async fn a_question_that_is_passed_on_is_answered_or_may_be_asked_elsewhere() {
    let cluster = Cluster::pair().await;
    let asking = &cluster.nodes[1].transport;
    let question = |verb: &str| {
        let path = format!("/blixard.api.v1.Api/{verb}");
        http::Request::post(path).body(hyper::body::Bytes::from_static(b"what")).unwrap()
    };
    let answer = asking.pass_on(node(0), question("Echo")).await.unwrap();
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    assert_eq!(&*body, b"what");
    let elsewhere = asking.pass_on(node(0), question("Elsewhere")).await.unwrap_err();
    assert!(matches!(elsewhere, PassError::NotAsked { .. }), "{elsewhere}");
    assert_eq!(cluster.nodes[0].recorder.questions.load(Ordering::Relaxed), 2);
    // Who was removed asks nothing any more, and neither does a stranger.
    cluster.nodes[0].directory.send_replace(Arc::new(left(&cluster, 0)));
    let answer = asking.pass_on(node(0), question("Echo")).await;
    let refused = answer.map(|answer| tonic::Status::from_header_map(answer.headers()).unwrap().code());
    assert!(matches!(refused, Ok(Code::PermissionDenied) | Err(_)), "{refused:?}");
    assert_eq!(cluster.nodes[0].recorder.questions.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn streams_that_last_take_no_room_from_what_the_nodes_say_to_each_other() {
    let cluster = Cluster::pair().await;
    let asking = &cluster.nodes[1].transport;
    *cluster.nodes[0].recorder.assignments.lock().unwrap() = Some(vec![]);
    let question = || http::Request::post("/blixard.api.v1.Api/Echo").body(hyper::body::Bytes::new()).unwrap();
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(asking.pass_on(node(0), question()).await.unwrap());
    }
    assert!(asking.beat(node(0)).await.is_ok());
}

#[tokio::test]
async fn who_was_removed_is_told_so_and_its_connections_are_cut() {
    let mut cluster = Cluster::start(2).await;
    let mut connected = PeerClient::new(cluster.call(1, 0).await);
    let stays_open = tokio_stream::once(frame(&cluster, 1, &[heartbeat(1, 0, 1)])).chain(tokio_stream::pending());
    let streaming = tokio::spawn(async move { connected.raft(stays_open).await.map(|end| end.into_inner().removed) });
    next("heartbeat", &mut cluster.nodes[0].steps, |_| true).await;
    cluster.nodes[0].directory.send_replace(Arc::new(left(&cluster, 0)));
    assert!(streaming.await.unwrap().unwrap(), "also on a stream on which nothing comes");
    let recorder = &cluster.nodes[1].recorder;
    wait_for("its link to hear it", || {}, || recorder.removals.load(Ordering::Relaxed) > 0).await;
    let mut client = PeerClient::new(cluster.call(1, 0).await);
    let refused = client.forward(ForwardRequest { command: vec![1], timeout_ms: 1000 }).await.unwrap_err();
    assert!(refused.message().contains("node 2 was removed from this cluster"), "{refused}");
    // Although there is something for it.
    *cluster.nodes[0].recorder.assignments.lock().unwrap() = Some(vec![vec![1]]);
    let refused = client.beat(BeatRequest {}).await.unwrap_err();
    assert!(refused.message().contains("node 2 was removed from this cluster"), "{refused}");
    let told = client.follow(FollowRequest {}).await.unwrap().into_inner().message().await.unwrap();
    assert_eq!(told.unwrap().told, Some(follow_reply::Told::Removed(true)));
}

#[tokio::test]
async fn a_forwarded_command_is_answered_with_its_outcome_or_why_there_is_none() {
    let cluster = Cluster::start(2).await;
    let (sender, leader) = (&cluster.nodes[0].transport, &cluster.nodes[1].recorder);
    let soon = || Instant::now() + MAX_WAIT;
    wait_for("a link", || (), || sender.shared.links.channel(node(1)).is_some()).await;
    assert_eq!(sender.forward(node(1), b"command".to_vec(), soon()).await, Ok(b"command".to_vec()));
    // The largest command that is taken.
    let largest = vec![7; MAX_COMMAND];
    assert_eq!(sender.forward(node(1), largest.clone(), soon()).await, Ok(largest));

    let to = node(1);
    for error in [
        ForwardError::NotLeader { to, leader: Some(node(2)) },
        ForwardError::NotLeader { to, leader: None },
        ForwardError::OutcomeUnknown { to },
        ForwardError::Refused { to, reason: "no".to_owned() },
    ] {
        *leader.answering.lock().unwrap() = Answering::Fail(error.clone());
        assert_eq!(sender.forward(to, vec![1], soon()).await, Err(error));
    }

    *leader.answering.lock().unwrap() = Answering::Never;
    let short = Instant::now() + Duration::from_millis(50);
    assert_eq!(sender.forward(to, vec![1], short).await, Err(ForwardError::OutcomeUnknown { to }));

    let error = sender.forward(NodeId(77), vec![1], soon()).await.unwrap_err();
    assert!(matches!(error, ForwardError::Unreachable { .. }), "{error}");
    cluster.nodes[1].transport.shutdown().await;
    // The old connection may be noticed first; from then on it is known that nothing is sent.
    let mut error = sender.forward(to, vec![1], soon()).await.unwrap_err();
    if matches!(error, ForwardError::OutcomeUnknown { .. }) {
        error = sender.forward(to, vec![1], soon()).await.unwrap_err();
    }
    assert!(matches!(error, ForwardError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("cannot connect to 127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_peer_that_restarts_is_reported_and_then_reached_again() {
    let mut cluster = Cluster::start(2).await;
    let sender = cluster.nodes[0].transport.clone();
    let mut term = 0;
    let mut send = || {
        term += 1;
        sender.send(vec![heartbeat(0, 1, term)]);
    };
    wait_for("a message", &mut send, || cluster.nodes[1].steps.try_recv().is_ok()).await;
    let address = cluster.nodes[1].address();
    cluster.nodes[1].transport.shutdown().await;
    let peer = next("report", &mut cluster.nodes[0].unreachable, |_| true).await;
    assert_eq!(peer, raft(1));

    // The port is free again at once: nothing of the old one is left.
    cluster.nodes[1] = cluster.start_node(1, address).await;
    cluster.publish();
    wait_for("a message", &mut send, || cluster.nodes[1].steps.try_recv().is_ok()).await;
}

#[tokio::test]
async fn a_peer_that_calls_is_called_at_once() {
    // Without that it takes as long as the link would wait, each time; a busy machine takes its time now and then.
    for _ in 0..20 {
        let mut cluster = Cluster::start(2).await;
        let address = cluster.nodes[1].address();
        cluster.nodes[1].transport.shutdown().await;
        for _ in 0..4 {
            next("report", &mut cluster.nodes[0].unreachable, |_| true).await;
        }
        let begun = Instant::now();
        cluster.nodes[1] = cluster.start_node(1, address).await;
        cluster.publish();
        let sender = cluster.nodes[0].transport.clone();
        let send = || sender.send(vec![heartbeat(0, 1, 1)]);
        wait_for("a message", send, || cluster.nodes[1].steps.try_recv().is_ok()).await;
        assert!(cluster.nodes[0].recorder.calls.load(Ordering::Relaxed) > 0, "who leads is told that it is there");
        if begun.elapsed() < FIRST_BACKOFF * 8 {
            return;
        }
    }
    panic!("it is called when the link has waited");
}

/// Passes bytes on, until `silenced` changes: what is connected then stays so, and carries nothing any more.
async fn cable(to: SocketAddr, silenced: watch::Receiver<()>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let mut silenced = silenced.clone();
            silenced.mark_unchanged();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    _ = silenced.changed() => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    (address, accepted)
}

#[tokio::test]
async fn a_connection_that_falls_silent_is_given_up_and_made_anew() {
    let mut cluster = Cluster::start(2).await;
    let silence = watch::Sender::new(());
    let (address, accepted) = cable(cluster.nodes[1].address(), silence.subscribe()).await;
    let mut directory = cluster.directory();
    let address = address.to_string().parse().unwrap();
    directory.enter(node(1), Member { address, ..cluster.directory().get(node(1)).unwrap().clone() });
    cluster.nodes[0].directory.send_replace(Arc::new(directory));
    let sender = cluster.nodes[0].transport.clone();
    wait_for("a connection over the cable", || (), || accepted.load(Ordering::Relaxed) >= 1).await;
    let send = || sender.send(vec![heartbeat(0, 1, 7)]);
    wait_for("a message", send, || cluster.nodes[1].steps.try_recv().is_ok_and(|message| message.term == 7)).await;
    silence.send_replace(());
    assert_eq!(next("report", &mut cluster.nodes[0].unreachable, |_| true).await, raft(1));
    while cluster.nodes[1].steps.try_recv().is_ok() {}
    wait_for("a message", send, || cluster.nodes[1].steps.try_recv().is_ok()).await;
}

#[tokio::test]
async fn a_member_that_moves_is_reached_at_its_new_address() {
    let mut cluster = Cluster::start(2).await;
    let sender = cluster.nodes[0].transport.clone();
    cluster.nodes[1].transport.shutdown().await;
    cluster.nodes[1] = cluster.start_node(1, "127.0.0.1:0".parse().unwrap()).await;
    cluster.publish();
    wait_for("a message", || sender.send(vec![heartbeat(0, 1, 1)]), || cluster.nodes[1].steps.try_recv().is_ok()).await;
}

#[tokio::test]
async fn shutdown_ends_every_task_even_with_a_command_under_way() {
    let cluster = Cluster::start(2).await;
    let before = cluster.nodes[1].transport.shared.tasks.0.receiver_count();
    assert!(before >= 2, "{before}");
    *cluster.nodes[1].recorder.answering.lock().unwrap() = Answering::Never;
    let mut client = PeerClient::new(cluster.call(0, 1).await);
    let call = tokio::spawn(async move {
        client.forward(ForwardRequest { command: vec![1], timeout_ms: 100_000 }).await.map(drop)
    });
    let recorder = cluster.nodes[1].recorder.clone();
    wait_for("the command", || (), || recorder.forwards.load(Ordering::Relaxed) == 1).await;
    for node in &cluster.nodes {
        tokio::time::timeout(MAX_WAIT, node.transport.shutdown()).await.unwrap();
        assert_eq!(node.transport.shared.tasks.0.receiver_count(), 0);
    }
    tokio::time::timeout(MAX_WAIT, call).await.unwrap().unwrap().unwrap_err();
}
