//! Hosts whose public key the manifest declares.

use blixard::api::proto;

use super::certificates::rotate;
use super::removal::{falls_silent, remove};
use super::support::{Agent, Api, Host, manifest};
use super::tokens::{create_token, with_token};
use super::{apply, cluster, node, sees_running, sees_servers, waits_for};

/// A host's key, as PEM, and the public one as it is declared.
struct Key {
    pem: String,
    public: String,
}

impl Key {
    fn generate() -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let public = key.public_key_pem();
        Self { pem: key.serialize_pem(), public: public.lines().nth(1).unwrap().to_owned() }
    }
}

/// One that has founded its cluster.
async fn founded() -> (Host, Agent, String) {
    let [founder] = Host::blank(["alpha"]);
    let alpha = founder.start();
    let authority = cluster(&alpha.is_healthy().await).authority.clone();
    (founder, alpha, authority)
}

/// beta, which has this key, and joins by way of `by`.
fn beta(by: &Host, key: &Key, authority: &str) -> Host {
    let [host] = Host::blank(["beta"]);
    let servers = by.servers.iter().chain(&host.servers).cloned().collect();
    Host { servers, key: Some((key.pem.clone(), authority.to_owned())), zone: "b", ..host }
}

/// Makes a manifest the head that declares this key of beta's, if any, and a VM that only beta may run.
async fn declare(agent: &Api, key: Option<&Key>) {
    let declared = key.map_or(String::new(), |key| format!(r#""beta": {{ "publicKey": "{}" }}"#, key.public));
    let json = String::from_utf8(manifest(&[("web", r#", "requires": { "zone": "b" }"#)])).unwrap();
    let json = json.replacen('{', &format!(r#"{{ "nodes": {{ {declared} }}, "#), 1);
    apply(agent, json.into_bytes()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_host_joins_by_its_key_runs_vms_and_needs_the_key_no_more() {
    let (founder, alpha, authority) = founded().await;
    let key = Key::generate();
    declare(&alpha, Some(&key)).await;
    let host = beta(&founder, &key, &authority);
    let agent = host.start();
    sees_running(&agent, 1).await;
    agent.stop().await;
    // Whatever is in its place now, and whatever is declared.
    declare(&alpha, Some(&Key::generate())).await;
    let [host] = [Host { key: Some(("nothing".to_owned(), authority)), ..host }];
    let agent = host.start();
    sees_servers(&agent, 1, 2).await;
    sees_running(&agent, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_key_is_not_declared_is_told_what_to_declare_and_then_joins() {
    let (founder, alpha, authority) = founded().await;
    let key = Key::generate();
    let host = beta(&founder, &key, &authority);
    let agent = host.start();
    waits_for(&agent, &["alpha@", "no key for beta", &format!("nodes.beta.publicKey to {}", key.public)]).await;
    declare(&alpha, Some(&Key::generate())).await;
    waits_for(&agent, &["another key for beta", &key.public, "node.key_file"]).await;
    assert_eq!(sees_nodes(&alpha).await, ["alpha"]);
    declare(&alpha, Some(&key)).await;
    sees_running(&agent, 1).await;
    assert_eq!(sees_nodes(&alpha).await, ["alpha", "beta"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_host_that_was_made_anew_is_another_node_once_the_old_one_is_said_to_be_dead() {
    let (founder, alpha, authority) = founded().await;
    let key = Key::generate();
    declare(&alpha, Some(&key)).await;
    let lost = beta(&founder, &key, &authority);
    let agent = lost.start();
    assert_eq!(node(&sees_running(&agent, 1).await, "beta").id, 2);
    agent.stop().await;
    let host = beta(&founder, &key, &authority);
    let agent = host.start();
    waits_for(&agent, &["the name beta is taken", "blixard node replace beta"]).await;
    falls_silent(&alpha, "beta").await;
    remove(&alpha, "beta", true).await.unwrap();
    assert_eq!(node(&sees_running(&agent, 1).await, "beta").id, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_key_is_declared_joins_by_nothing_else() {
    let (founder, alpha, authority) = founded().await;
    declare(&alpha, Some(&Key::generate())).await;
    let token = create_token(&alpha).await.token;
    let by_key = beta(&founder, &Key::generate(), &authority);
    let [by_token] = with_token(["beta"], &founder, &token);
    let [blank] = Host::blank(["beta"]);
    let by_secret = Host { servers: by_key.servers.clone(), ..blank };
    for (host, words) in [
        (by_secret, ["a key for beta", "is let in by that alone"]),
        (by_token, ["a key for beta", "is let in by that alone"]),
        (by_key, ["another key for beta", "node.key_file"]),
    ] {
        let agent = host.start();
        waits_for(&agent, &words).await;
        agent.stop().await;
    }
    assert_eq!(sees_nodes(&alpha).await, ["alpha"]);
    declare(&alpha, None).await;
    let [unused] = with_token(["beta"], &founder, &token);
    sees_running(&Host { zone: "b", ..unused }.start(), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_knows_the_cluster_by_another_authority_or_has_no_key_says_so() {
    let (founder, alpha, authority) = founded().await;
    let key = Key::generate();
    declare(&alpha, Some(&key)).await;
    let (id, hash) = authority.split_once(':').unwrap();
    let other = format!("{id}:{}", "0".repeat(hash.len()));
    let foreign = format!("{}:{hash}", "0".repeat(id.len()));
    for (authority, words) in
        [(other, ["alpha@", "blixard cluster authority"]), (foreign, [id, "cluster.authority is of"])]
    {
        waits_for(&beta(&founder, &key, &authority).start(), &words).await;
    }
    let without = Key { pem: key.public.clone(), ..key };
    waits_for(&beta(&founder, &without, &authority).start(), &["/key holds no Ed25519", "openssl genpkey"]).await;
    assert_eq!(sees_nodes(&alpha).await, ["alpha"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_knows_the_cluster_by_an_authority_that_was_replaced_needs_the_new_one() {
    let (founder, alpha, old) = founded().await;
    let key = Key::generate();
    rotate(&alpha, None).await.unwrap();
    let is_over = |status: &proto::StatusReply| cluster(status).authority != old && status.problems.is_empty();
    let new = cluster(&alpha.sees("another authority", is_over).await).authority.clone();
    declare(&alpha, Some(&key)).await;
    waits_for(&beta(&founder, &key, &old).start(), &["alpha@", "blixard cluster authority"]).await;
    sees_running(&beta(&founder, &key, &new).start(), 1).await;
}

async fn sees_nodes(agent: &Api) -> Vec<String> {
    let status = agent.sees("all of its nodes", |status| !status.nodes.is_empty()).await;
    status.nodes.into_iter().map(|node| node.name).collect()
}
