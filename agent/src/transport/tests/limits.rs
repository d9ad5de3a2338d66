//! Too much, too big, or no sense at all.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use raft::eraftpb::{Entry, Message, MessageType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tonic::Code;

use super::super::link::QUEUE_MESSAGES;
use super::super::proto::join_client::JoinClient;
use super::super::proto::peer_client::PeerClient;
use super::super::proto::{HelloRequest, RaftFrame, RedeemRequest, admit_reply};
use super::super::*;
use super::rig::*;
use crate::identity::{Clock, stranger_client};

fn append(bytes: usize) -> Message {
    let entry = Entry { index: 1, term: 1, data: vec![7; bytes], ..Entry::default() };
    let msg_type = MessageType::MsgAppend as i32;
    Message { msg_type, from: raft(0).0, to: raft(1).0, term: 1, entries: vec![entry], ..Message::default() }
}

#[tokio::test]
async fn garbage_on_the_port_leaves_the_node_working() {
    let mut cluster = Cluster::start(2).await;
    let address = cluster.nodes[1].address();
    let tls_without_end = [&[22, 3, 1, 0x3f, 0xff][..], &[1; 100]].concat();
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0xff; 100_000], vec![0; 10], tls_without_end] {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let _ = tcp.write_all(&garbage).await;
        let _ = tcp.shutdown().await;
        let mut answer = Vec::new();
        // It is closed, by an error or not, and nothing but an alert comes back.
        let _ = tokio::time::timeout(MAX_WAIT, tcp.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.len() < 32, "{answer:?}");
    }
    // Good TLS, and garbage inside.
    let address: Address = address.to_string().parse().unwrap();
    let mut tls = connect::connect(&address, Arc::new(stranger_client())).await.unwrap();
    tls.write_all(&[0xff; 1000]).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(MAX_WAIT, tls.read_to_end(&mut answer)).await.unwrap();

    let sender = cluster.nodes[0].transport.clone();
    wait_for("a message", || sender.send(vec![heartbeat(0, 1, 1)]), || cluster.nodes[1].steps.try_recv().is_ok()).await;
}

#[tokio::test]
async fn idle_strangers_take_only_their_own_places() {
    let mut cluster = Cluster::start(2).await;
    let sender = cluster.nodes[0].transport.clone();
    let mut term = 0;
    let mut send = || {
        term += 1;
        sender.send(vec![heartbeat(0, 1, term)]);
    };
    wait_for("a message", &mut send, || cluster.nodes[1].steps.try_recv().is_ok()).await;
    // Each says nothing, and is kept until its handshake times out; only then another is let in.
    let mut idle: Vec<TcpStream> = Vec::new();
    let refused = async {
        loop {
            let mut tcp = TcpStream::connect(cluster.nodes[1].address()).await.unwrap();
            // Who has a place hears nothing; who finds none is closed at once.
            let answer = tokio::time::timeout(Duration::from_millis(20), tcp.read(&mut [0])).await;
            if answer.is_ok() {
                return;
            }
            idle.push(tcp);
        }
    };
    tokio::time::timeout(MAX_WAIT, refused).await.expect("the port to be full");
    while cluster.nodes[1].steps.try_recv().is_ok() {}
    wait_for("a message", &mut send, || cluster.nodes[1].steps.try_recv().is_ok()).await;
}

#[tokio::test]
async fn strangers_that_stay_leave_members_their_way_in() {
    let mut cluster = Cluster::start(2).await;
    let address: Address = cluster.nodes[1].address().to_string().parse().unwrap();
    let mut staying = Vec::new();
    loop {
        let mut stream = connect::connect(&address, Arc::new(stranger_client())).await.unwrap();
        // Who may stay is told of the other's HTTP/2 settings; who may not is told nothing.
        let mut settings = [0];
        match tokio::time::timeout(MAX_WAIT, stream.read(&mut settings)).await.expect("an answer") {
            Ok(1) => staying.push(stream),
            _ => break,
        }
    }
    assert_eq!(staying.len(), 16);
    let sender = cluster.nodes[0].transport.clone();
    wait_for("a message", || sender.send(vec![heartbeat(0, 1, 1)]), || cluster.nodes[1].steps.try_recv().is_ok()).await;
}

#[tokio::test]
async fn tries_to_join_that_fail_are_limited_and_say_so() {
    let cluster = Cluster::start(1).await;
    let redeem = |node: &Node| {
        let channel = channel(node.address(), stranger_client());
        async {
            let request =
                RedeemRequest { name: "gamma".to_owned(), address: "127.0.0.1:9".to_owned(), ..Default::default() };
            JoinClient::new(channel.await.unwrap()).redeem(request).await
        }
    };
    for _ in 0..20 {
        let reply = redeem(&cluster.nodes[0]).await.unwrap().into_inner();
        assert!(matches!(reply.result, Some(admit_reply::Result::Refused(_))), "{reply:?}");
    }
    let status = redeem(&cluster.nodes[0]).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("try again later"), "{status}");
    assert_eq!(cluster.nodes[0].recorder.admits.load(Ordering::Relaxed), 20, "the cluster isn't asked");
}

#[tokio::test]
async fn a_frame_of_who_has_no_certificate_is_not_even_read() {
    let cluster = Cluster::start(1).await;
    let channel = channel(cluster.nodes[0].address(), stranger_client()).await.unwrap();
    // A message of 8 MiB, of which no more comes than its head.
    let head = hyper::body::Bytes::from_static(&[0, 0, 0x80, 0, 0]);
    let frames = tokio_stream::once(Ok::<_, std::convert::Infallible>(hyper::body::Frame::data(head)));
    let body = tonic::body::Body::new(http_body_util::StreamBody::new(frames.chain(tokio_stream::pending())));
    let request = http::Request::post("/blixard.peer.v1.Peer/Forward").header("content-type", "application/grpc");
    let answer = tower::ServiceExt::oneshot(channel, request.body(body).unwrap());
    let answer = tokio::time::timeout(MAX_WAIT, answer).await.expect("an answer").unwrap();
    assert_eq!(tonic::Status::from_header_map(answer.headers()).unwrap().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn who_has_no_certificate_asks_only_so_often_on_a_connection() {
    let cluster = Cluster::start(2).await;
    let mut client = JoinClient::new(channel(cluster.nodes[1].address(), stranger_client()).await.unwrap());
    let hello = || HelloRequest { nonce: vec![0; 32], name: "gamma".to_owned() };
    for _ in 0..16 {
        client.hello(hello()).await.unwrap();
    }
    client.hello(hello()).await.unwrap_err();
    // A member does, and so does a stranger on another connection.
    let mut client = JoinClient::new(cluster.call(0, 1).await);
    for _ in 0..100 {
        client.hello(hello()).await.unwrap();
    }
    JoinClient::new(channel(cluster.nodes[1].address(), stranger_client()).await.unwrap())
        .hello(hello())
        .await
        .unwrap();
}

#[tokio::test]
async fn fifty_megabytes_are_refused_everywhere_with_a_clear_error() {
    const SIZE: usize = 50 << 20;
    let mut cluster = Cluster::start(2).await;
    let sender = cluster.nodes[0].transport.clone();
    wait_for("a message", || sender.send(vec![heartbeat(0, 1, 1)]), || cluster.nodes[1].steps.try_recv().is_ok()).await;
    // By this side.
    sender.send(vec![append(SIZE)]);
    assert_eq!(next("report", &mut cluster.nodes[0].unreachable, |_| true).await, raft(1));
    let error = sender.forward(node(1), vec![0; SIZE], Instant::now() + MAX_WAIT).await.unwrap_err();
    let ForwardError::Refused { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains("52428800 bytes") && reason.contains("at most 5242880"), "{reason}");
    // By the other side.
    let frame = RaftFrame {
        cluster: cluster.authority.cluster().to_string(),
        sender: node(0).0,
        messages: vec![vec![0; SIZE]],
        ..RaftFrame::default()
    };
    let mut client = PeerClient::new(cluster.call(0, 1).await);
    let status = client.raft(tokio_stream::iter([frame])).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(status.message().contains("too large"), "{status}");
    let mut client = JoinClient::new(channel(cluster.nodes[1].address(), stranger_client()).await.unwrap());
    let hello = HelloRequest { nonce: vec![0; 65 * 1024], name: "gamma".to_owned() };
    assert_eq!(client.hello(hello).await.unwrap_err().code(), Code::OutOfRange);
    // And the largest that is taken, is taken: many, in one go.
    let largest = append(MAX_COMMAND);
    sender.send(vec![largest.clone(); 5]);
    for _ in 0..5 {
        let got = next("append", &mut cluster.nodes[1].steps, |m| !m.entries.is_empty()).await;
        assert!(got == largest);
    }
}

#[tokio::test]
async fn a_full_queue_drops_and_reports_and_does_not_block() {
    let mut cluster = Cluster::start(1).await;
    // It accepts, and then says nothing: the queue only fills.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut directory = cluster.directory();
    let Server { name, address } = server(1, silent.local_addr().unwrap());
    directory.enter(node(1), Member { name, address, raft: Some(raft(1)) });
    let alone = &mut cluster.nodes[0];
    alone.directory.send_replace(Arc::new(directory));
    wait_for("a link", || (), || alone.transport.shared.links.channel(node(1)).is_some()).await;

    let few = vec![heartbeat(0, 1, 1); 10];
    alone.transport.send(few);
    assert!(alone.unreachable.try_recv().is_err(), "there is room for some");
    let many = vec![heartbeat(0, 1, 1); QUEUE_MESSAGES * 2];
    alone.transport.send(many);
    assert_eq!(alone.unreachable.try_recv(), Ok(raft(1)), "and it is reported before send returns");
}

#[tokio::test]
async fn a_queue_is_bounded_in_bytes_too() {
    let mut cluster = Cluster::start(1).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut directory = cluster.directory();
    let Server { name, address } = server(1, silent.local_addr().unwrap());
    directory.enter(node(1), Member { name, address, raft: Some(raft(1)) });
    let alone = &mut cluster.nodes[0];
    alone.directory.send_replace(Arc::new(directory));
    wait_for("a link", || (), || alone.transport.shared.links.channel(node(1)).is_some()).await;
    alone.transport.send(vec![append(MAX_COMMAND); 20]);
    assert_eq!(alone.unreachable.try_recv(), Ok(raft(1)));
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = taken.local_addr().unwrap();
    let node = Node::blank(0, secret(1)).await;
    let settings =
        Settings { listen, own: server(0, listen), servers: list(), secrets: Some(secret(1)), clock: Clock::default() };
    let started = Transport::start(settings, node.recorder.clone(), node.directory.subscribe()).await;
    let error = started.err().unwrap().to_string();
    assert!(error.contains(&listen.to_string()) && error.contains("node.listen"), "{error}");
}
