//! The rows of a snapshot on their way between two members.

use std::sync::Arc;

use blixard_core::driver::Position;

use super::super::*;
use super::rig::{Cluster, node};

const AT: Position = Position { index: 7, term: 2 };

/// Chunks `0`, `1` … each named by its number; one of them can't be read.
struct Numbers {
    count: u8,
    broken: Option<u8>,
}

impl SnapshotRows for Numbers {
    fn chunk(&self, after: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>), String> {
        let number = after.first().map_or(0, |last| last + 1);
        match self.broken {
            Some(broken) if broken == number => Err("the disk is gone".to_owned()),
            _ => Ok((vec![number], (number + 1 < self.count).then(|| vec![number]))),
        }
    }
}

async fn fetched(cluster: &Cluster, after: Vec<u8>, count: usize) -> Result<Vec<u8>, SnapshotError> {
    let mut chunks = cluster.nodes[1].transport.snapshot(node(0), AT, after).await?;
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(chunks.next().await?);
    }
    Ok(all)
}

#[tokio::test]
async fn a_snapshot_comes_whole_and_in_order() {
    let cluster = Cluster::pair().await;
    *cluster.nodes[0].recorder.rows.lock().unwrap() = Some(Arc::new(Numbers { count: 40, broken: None }));
    assert_eq!(fetched(&cluster, Vec::new(), 40).await.unwrap(), (0..40).collect::<Vec<u8>>());
}

#[tokio::test]
async fn a_snapshot_that_broke_off_is_gone_on_with() {
    let cluster = Cluster::pair().await;
    *cluster.nodes[0].recorder.rows.lock().unwrap() = Some(Arc::new(Numbers { count: 9, broken: Some(5) }));
    let broken = fetched(&cluster, Vec::new(), 9).await.unwrap_err();
    assert!(matches!(&broken, SnapshotError::Broken { reason, .. } if reason.contains("the disk is gone")), "{broken}");
    *cluster.nodes[0].recorder.rows.lock().unwrap() = Some(Arc::new(Numbers { count: 9, broken: None }));
    assert_eq!(fetched(&cluster, vec![4], 4).await.unwrap(), [5, 6, 7, 8]);
}

#[tokio::test]
async fn a_snapshot_that_was_not_announced_is_not_to_be_had() {
    let cluster = Cluster::pair().await;
    let gone = fetched(&cluster, Vec::new(), 1).await.unwrap_err();
    assert_eq!(gone, SnapshotError::Gone { from: node(0) });
}
