//! The local API: what the command line asks, over a Unix socket that root and group `blixard` may open.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use blixard_core::command::{Answer, Command, Origin, Presence, Reply, TaskSpec};
use blixard_core::manifest::{self, Manifest, VmSpec};
use blixard_core::plan;
use blixard_core::state::{Conflict, State};
use blixard_core::types::{InvalidValue, NodeId, NodeName, Resources, VmName};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::identity::Secrets;
use crate::node::{Handle, ProposeError, Standing};
use crate::transport::{ApiRequest, ApiResponse};

mod drain;
mod elsewhere;
mod events;
mod identities;
mod manifests;
mod status;
pub mod view;

use elsewhere::Front;
use status::status;

/// Generated from `proto/api.proto`.
#[allow(clippy::pedantic, missing_docs, reason = "generated code")]
pub mod proto {
    tonic::include_proto!("blixard.api.v1");
}

/// Largest request, in bytes: a manifest file of the largest size and its frame.
const MAX_REQUEST_BYTES: usize = manifest::MAX_BYTES + (64 << 10);

/// Why the API can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("cannot take over the API socket {path}: is another agent running?")]
    Remove { path: PathBuf, source: std::io::Error },
    #[error("cannot listen on the API socket {path}: its directory has to exist and be writable")]
    Listen { path: PathBuf, source: std::io::Error },
    #[error("cannot give the API socket {path} to root and its group")]
    Permit { path: PathBuf, source: std::io::Error },
    #[error("the API stopped")]
    Serve(#[source] tonic::transport::Error),
}

/// Opens the socket; a stale one of an agent that was killed is replaced.
///
/// # Errors
/// The path, and what to do.
pub fn listen(path: &Path) -> Result<UnixListener, ApiError> {
    let own = || path.to_owned();
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(ApiError::Remove { path: own(), source });
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(|source| ApiError::Listen { path: own(), source })?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .map_err(|source| ApiError::Permit { path: own(), source })?;
    Ok(listener)
}

/// Answers until `stop` is ready.
///
/// # Errors
/// Only when the listener itself fails.
pub async fn serve(
    listener: UnixListener,
    service: Service,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ApiError> {
    tonic::transport::Server::builder()
        .max_concurrent_streams(Some(128))
        .add_service(Front::new(service))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await
        .map_err(ApiError::Serve)
}

/// The API of this host alone.
#[derive(Clone)]
pub struct Service {
    stage: watch::Receiver<Stage>,
    inner: proto::api_server::ApiServer<Api>,
}

impl Service {
    /// Needs a tokio runtime, on which what takes long is done.
    pub fn new(stage: watch::Receiver<Stage>, secrets: Option<Secrets>) -> Self {
        let api = Api { stage: stage.clone(), secrets, runtime: tokio::runtime::Handle::current() };
        let inner = proto::api_server::ApiServer::new(api).max_decoding_message_size(MAX_REQUEST_BYTES);
        Self { stage, inner }
    }

    /// What it answers to another host's question: nothing where this one is no server, and would have to ask itself.
    pub async fn answer_member(&self, question: ApiRequest) -> ApiResponse {
        match &*self.stage.borrow() {
            Stage::Follower(_) => return elsewhere::not_here("this host is no server".to_owned()).into_http(),
            Stage::Waiting(_) | Stage::Member(_) | Stage::Changing | Stage::Broken(_) => {}
        }
        self.answer(question).await
    }

    async fn answer(&self, question: ApiRequest) -> ApiResponse {
        match tower::Service::call(&mut self.inner.clone(), question).await {
            Ok(answer) => answer,
        }
    }
}

/// The answer of one that ends before it has one.
pub fn silence() -> ApiResponse {
    Status::cancelled("the agent stops").into_http()
}

/// Whom the API asks.
#[derive(Clone)]
pub enum Stage {
    /// This host is no member yet; the text says what it waits for.
    Waiting(String),
    Member(Handle),
    /// This host is no server: what it is asked is passed on.
    Follower(Handle),
    /// This host is about to become a server, or no server any more.
    Changing,
    /// The agent can't go on from its disk; the text says why.
    Broken(String),
}

pub struct Api {
    stage: watch::Receiver<Stage>,
    secrets: Option<Secrets>,
    runtime: tokio::runtime::Handle,
}

impl Api {
    fn handle(&self) -> Result<Handle, Status> {
        let reason = match &*self.stage.borrow() {
            // A follower is asked only what it can do: see `elsewhere`.
            Stage::Member(handle) | Stage::Follower(handle) => return Ok(handle.clone()),
            Stage::Waiting(reason) => format!("this host is not a member yet: {reason}"),
            Stage::Changing => "this host is becoming a server, or ceases to be one".to_owned(),
            Stage::Broken(reason) => format!("this host's agent has stopped: {reason}"),
        };
        Err(elsewhere::not_here(reason))
    }

    async fn propose(&self, command: Command) -> Result<Answer, Status> {
        match self.handle()?.propose(command).await {
            Ok(Answer { reply: Reply::Refused(why), .. }) => Err(Status::failed_precondition(why)),
            Ok(answer) => Ok(answer),
            Err(error) => Err(to_status(&error)),
        }
    }

    fn read<T>(&self, read: impl FnOnce(&State, &Standing) -> T) -> Result<T, Status> {
        self.handle()?.read(read).map_err(|error| to_status(&error))
    }

    /// Waits until what this node reads is as fresh as it is asked to be.
    async fn await_fresh(&self, freshness: proto::Freshness) -> Result<(), Status> {
        match freshness {
            proto::Freshness::Linearizable => self.handle()?.barrier().await.map_err(|error| to_status(&error)),
            proto::Freshness::Stale => Ok(()),
        }
    }

    async fn read_status(&self, freshness: proto::Freshness) -> Result<proto::StatusReply, Status> {
        // Most of all when the cluster has no quorum, people want to see what is known of it.
        let confirmed = match self.await_fresh(freshness).await {
            Ok(()) => freshness == proto::Freshness::Linearizable,
            Err(error) => {
                tracing::debug!(error = error.message(), "status is of this node alone");
                false
            }
        };
        let expected = confirmed || freshness == proto::Freshness::Stale;
        let mut reply = status(&self.handle()?).await?;
        let mut has_quorum = false;
        if let Some(cluster) = &mut reply.cluster {
            cluster.confirmed = confirmed;
            has_quorum = cluster.quorum;
        }
        if !expected && has_quorum {
            reply.problems.push("no quorum has confirmed this in time: it is what this node knows".to_owned());
        }
        Ok(reply)
    }

    async fn find_node(&self, name: &str) -> Result<NodeId, Status> {
        let name: NodeName = name.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        self.await_fresh(proto::Freshness::Linearizable).await?;
        let node = self.read(|state, _| state.node_named(&name).map(|(node, _)| node))?;
        node.ok_or_else(|| Status::not_found(format!("there is no node {name}: see `blixard node ls`")))
    }

    async fn change(&self, command: Command) -> Result<u64, Status> {
        let Answer { index, reply } = self.propose(command).await?;
        match reply {
            Reply::Done => Ok(index),
            reply => Err(Status::internal(format!("an answer of another kind: {reply:?}"))),
        }
    }
}

/// The one place where errors become codes.
fn to_status(error: &ProposeError) -> Status {
    let text = crate::error_chain(error);
    match error {
        ProposeError::NoLeader { .. } => Status::unavailable(text),
        ProposeError::Stopped | ProposeError::NoServer => elsewhere::not_here(text),
        ProposeError::OutcomeUnknown { .. } | ProposeError::NotConfirmed { .. } => Status::deadline_exceeded(text),
        ProposeError::TooLarge { .. } => Status::invalid_argument(text),
        ProposeError::Busy => Status::resource_exhausted(text),
    }
}

fn parse_manifest(json: &[u8]) -> Result<Manifest, Status> {
    Manifest::parse(json).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn parse_name(name: &str) -> Result<VmName, Status> {
    name.parse().map_err(|error| Status::invalid_argument(format!("{error}")))
}

#[tonic::async_trait]
impl proto::api_server::Api for Api {
    async fn status(&self, request: Request<proto::StatusRequest>) -> Result<Response<proto::StatusReply>, Status> {
        Ok(Response::new(self.read_status(request.into_inner().freshness()).await?))
    }

    type WatchStatusStream = Pin<Box<dyn Stream<Item = Result<proto::StatusReply, Status>> + Send>>;

    async fn watch_status(
        &self,
        request: Request<proto::StatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let handle = self.handle()?;
        let changes = WatchStream::from_changes(handle.changes());
        let first = self.read_status(request.into_inner().freshness()).await?;
        let runtime = self.runtime.clone();
        let replies = changes.then(move |_| {
            let handle = handle.clone();
            let replied = runtime.spawn(async move { status(&handle).await });
            async { replied.await.unwrap_or_else(|_| Err(Status::cancelled("the agent stops"))) }
        });
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(first)).chain(replies))))
    }

    async fn plan(&self, request: Request<proto::ManifestRequest>) -> Result<Response<proto::PlanReply>, Status> {
        let manifest = parse_manifest(&request.into_inner().json)?;
        self.await_fresh(proto::Freshness::Linearizable).await?;
        let reply = self.read(|state, _| {
            let planned = plan::plan(state, &manifest)?;
            let stopped = planned.iter().filter(|planned| planned.action == plan::PlannedAction::Stop).count();
            let unchanged = manifest.instances().count() + stopped - planned.len();
            let planned = planned.into_iter().map(|planned| proto::Planned {
                instance: planned.instance.to_string(),
                action: planned.action.as_str().to_owned(),
                why: planned.why,
            });
            let unchanged = u32::try_from(unchanged).unwrap_or(u32::MAX);
            Ok(proto::PlanReply { planned: planned.collect(), unchanged, settings: state.other_settings(&manifest) })
        });
        let refused = |conflict: Conflict| Status::failed_precondition(conflict.to_string());
        Ok(Response::new(reply?.map_err(refused)?))
    }

    async fn apply(&self, request: Request<proto::ManifestRequest>) -> Result<Response<proto::ApplyReply>, Status> {
        let request = request.into_inner();
        let manifest = parse_manifest(&request.json)?;
        self.change_manifest(Command::OfferManifest { manifest, from: Origin::Person(request.from) }).await
    }

    async fn list_manifests(
        &self,
        request: Request<proto::ListManifestsRequest>,
    ) -> Result<Response<proto::ListManifestsReply>, Status> {
        self.await_fresh(request.into_inner().freshness()).await?;
        let reply =
            self.read(|state, _| proto::ListManifestsReply { heads: view::heads(state), held: view::held(state) });
        Ok(Response::new(reply?))
    }

    async fn accept_manifest(
        &self,
        request: Request<proto::AcceptManifestRequest>,
    ) -> Result<Response<proto::ApplyReply>, Status> {
        let node = self.find_held(&request.into_inner().node).await?;
        self.change_manifest(Command::AcceptManifest { node }).await
    }

    async fn roll_back_manifest(
        &self,
        request: Request<proto::RollBackManifestRequest>,
    ) -> Result<Response<proto::ApplyReply>, Status> {
        self.change_manifest(Command::RollBackManifest { from: request.into_inner().from }).await
    }

    async fn explain(&self, request: Request<proto::ExplainRequest>) -> Result<Response<proto::ExplainReply>, Status> {
        let request = request.into_inner();
        self.await_fresh(request.freshness()).await?;
        let name = request.vm;
        let instances = self.read(|state, _| view::explain(state, &name))?;
        if instances.is_empty() {
            return Err(Status::not_found(format!("there is no VM {name:?}: see `blixard vm ls`")));
        }
        Ok(Response::new(proto::ExplainReply { instances }))
    }

    async fn put_vm(&self, request: Request<proto::PutVmRequest>) -> Result<Response<proto::PutVmReply>, Status> {
        let request = request.into_inner();
        let must = match request.must() {
            proto::Presence::Any => None,
            proto::Presence::Absent => Some(Presence::Absent),
            proto::Presence::Present => Some(Presence::Present),
        };
        let name = parse_name(&request.name)?;
        let spec = VmSpec::parse(&request.json).map_err(|error| Status::invalid_argument(error.of_one_vm()))?;
        let index = self.change(Command::PutVm { name, spec, running: request.running, must }).await?;
        Ok(Response::new(proto::PutVmReply { index }))
    }

    async fn set_vm_running(
        &self,
        request: Request<proto::SetVmRunningRequest>,
    ) -> Result<Response<proto::SetVmRunningReply>, Status> {
        let proto::SetVmRunningRequest { name, running } = request.into_inner();
        let index = self.change(Command::SetVmRunning { name: parse_name(&name)?, running }).await?;
        Ok(Response::new(proto::SetVmRunningReply { index }))
    }

    async fn remove_vm(
        &self,
        request: Request<proto::RemoveVmRequest>,
    ) -> Result<Response<proto::RemoveVmReply>, Status> {
        let index = self.change(Command::RemoveVm { name: parse_name(&request.into_inner().name)? }).await?;
        Ok(Response::new(proto::RemoveVmReply { index }))
    }

    async fn remove_node(
        &self,
        request: Request<proto::RemoveNodeRequest>,
    ) -> Result<Response<proto::RemoveNodeReply>, Status> {
        let proto::RemoveNodeRequest { name, dead, abandon_volumes } = request.into_inner();
        let node = self.find_node(&name).await?;
        let index = self.change(Command::RemoveNode { node, dead, abandon_volumes }).await?;
        Ok(Response::new(proto::RemoveNodeReply { index, node: node.0 }))
    }

    async fn set_availability(
        &self,
        request: Request<proto::SetAvailabilityRequest>,
    ) -> Result<Response<proto::SetAvailabilityReply>, Status> {
        self.open_or_close(request.into_inner()).await.map(Response::new)
    }

    async fn r#move(&self, request: Request<proto::MoveRequest>) -> Result<Response<proto::MoveReply>, Status> {
        self.move_instance(request.into_inner()).await.map(Response::new)
    }

    async fn create_token(
        &self,
        request: Request<proto::CreateTokenRequest>,
    ) -> Result<Response<proto::CreateTokenReply>, Status> {
        self.draw_token(request.into_inner()).await.map(Response::new)
    }

    async fn list_tokens(
        &self,
        request: Request<proto::ListTokensRequest>,
    ) -> Result<Response<proto::ListTokensReply>, Status> {
        self.await_fresh(request.into_inner().freshness()).await?;
        let reply = self.read(|state, _| proto::ListTokensReply { tokens: view::tokens(state) });
        Ok(Response::new(reply?))
    }

    async fn revoke_token(
        &self,
        request: Request<proto::RevokeTokenRequest>,
    ) -> Result<Response<proto::RevokeTokenReply>, Status> {
        let id = request.into_inner().id;
        let token = id.parse().map_err(|error: InvalidValue| Status::invalid_argument(error.to_string()))?;
        let index = self.change(Command::RevokeToken { token }).await?;
        Ok(Response::new(proto::RevokeTokenReply { index }))
    }

    async fn rotate_secret(
        &self,
        _request: Request<proto::RotateSecretRequest>,
    ) -> Result<Response<proto::RotateSecretReply>, Status> {
        self.await_fresh(proto::Freshness::Linearizable).await?;
        let index = self.change(self.reseal()?).await?;
        Ok(Response::new(proto::RotateSecretReply { index }))
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<proto::EventsReply, Status>> + Send>>;

    async fn events(&self, request: Request<proto::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let events = self.events_after(request.into_inner()).await?;
        Ok(Response::new(Box::pin(events)))
    }

    async fn confirm_dead(
        &self,
        request: Request<proto::ConfirmDeadRequest>,
    ) -> Result<Response<proto::ConfirmDeadReply>, Status> {
        let proto::ConfirmDeadRequest { name, abandon_volumes } = request.into_inner();
        let node = self.find_node(&name).await?;
        let index = self.change(Command::ConfirmDead { node, abandon_volumes }).await?;
        Ok(Response::new(proto::ConfirmDeadReply { index }))
    }

    async fn resume_takeover(
        &self,
        _request: Request<proto::ResumeTakeoverRequest>,
    ) -> Result<Response<proto::ResumeTakeoverReply>, Status> {
        let index = self.change(Command::ResumeTakeover).await?;
        Ok(Response::new(proto::ResumeTakeoverReply { index }))
    }

    type BackupStream = Pin<Box<dyn Stream<Item = Result<proto::BackupPiece, Status>> + Send>>;

    async fn backup(&self, request: Request<proto::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        self.await_fresh(request.into_inner().freshness()).await?;
        let pieces = self.handle()?.backup().await.map_err(|error| to_status(&error))?;
        let pieces = ReceiverStream::new(pieces)
            .map(|piece| piece.map(|bytes| proto::BackupPiece { bytes }).map_err(Status::internal));
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderReply>, Status> {
        let name = request.into_inner().name;
        let handle = self.handle()?;
        let to = if name.is_empty() { None } else { Some(self.find_node(&name).await?) };
        if !handle.leads() {
            return Err(elsewhere::not_here("this host does not lead".to_owned()));
        }
        let node = handle.transfer(to).await.map_err(Status::failed_precondition)?;
        let leader = self.read(|state, _| state.nodes().get(&node).map(|member| member.name.to_string()))?;
        Ok(Response::new(proto::TransferLeaderReply { leader: leader.unwrap_or_default() }))
    }

    async fn rotate_authority(
        &self,
        request: Request<proto::RotateAuthorityRequest>,
    ) -> Result<Response<proto::RotateAuthorityReply>, Status> {
        self.begin_rotation(request.into_inner()).await.map(Response::new)
    }

    async fn run_task(&self, request: Request<proto::RunTaskRequest>) -> Result<Response<proto::RunTaskReply>, Status> {
        let request = request.into_inner();
        let resources = Resources { cpus: request.cpus, memory_mib: request.memory_mib, disk_mib: 0 };
        let spec = TaskSpec { command: request.command, request: resources };
        let Answer { index, reply } = self.propose(Command::RunTask(spec)).await?;
        match reply {
            Reply::Task(id) => Ok(Response::new(proto::RunTaskReply { task: id.to_string(), index })),
            reply => Err(Status::internal(format!("an answer of another kind: {reply:?}"))),
        }
    }

    async fn list_tasks(
        &self,
        request: Request<proto::ListTasksRequest>,
    ) -> Result<Response<proto::ListTasksReply>, Status> {
        self.await_fresh(request.into_inner().freshness()).await?;
        let reply = self.read(|state, _| proto::ListTasksReply { tasks: view::tasks(state) });
        Ok(Response::new(reply?))
    }
}
