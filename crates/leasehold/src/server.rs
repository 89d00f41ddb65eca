//! What `leasehold serve` runs: gRPC in front of the engine, on TCP and on a unix socket, with `/metrics` beside it.
//!
//! ```text
//! start: engine (store, arena, data port) -> control ports -> metrics port
//! stop:  streams end -> engine drains -> calls in flight finish -> ports close
//! ```

mod asks;
mod bind;
mod calls;
mod door;
mod metrics;
mod mounts;
pub(crate) mod peer;
pub(crate) mod refusal;
pub(crate) mod rows;
mod sessions;
pub mod settings;
mod streams;
pub(crate) mod tenants;
pub(crate) mod tls;

use crate::server::bind::{Port, Socket, tcp, unix};
use crate::server::calls::Calls;
use crate::server::tenants::Tenants;
use leasehold_client::proto;
use leasehold_client::proto::leasehold_server::LeaseholdServer;
use leasehold_engine::engine::{Engine, StartError, StopError};
use settings::{Insecure, Settings};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;

pub use bind::BindError;
pub use tenants::TenantsError;
pub use tls::TlsError;

/// How long calls in flight may take to finish once the engine has drained.
const FINISH: Duration = Duration::from_secs(2);
/// How often an idle control connection is asked whether it lives, and how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A piece of a write through gRPC, and what the message around it needs.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// A server that runs. Dropping it without [`Server::stop`] is a crash, as far as the store is concerned: safe, and
/// recovered from at the next start.
pub struct Server {
    engine: Engine,
    control: Option<SocketAddr>,
    metrics: SocketAddr,
    socket: Socket,
    stopping: watch::Sender<bool>,
    /// Told once the engine has drained.
    closing: watch::Sender<bool>,
    serving: JoinSet<()>,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The engine: the store, the arena, or the data port.
    #[error(transparent)]
    Engine(#[from] StartError),
    /// A port or the socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Who may do what.
    #[error(transparent)]
    Tenants(#[from] TenantsError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The description of the protocol for reflection.
    #[error("the protocol's descriptors cannot be served")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl Server {
    /// Opens or creates the store in `directory`, recovers it, and serves it. Port 0 lets the system choose.
    ///
    /// # Errors
    /// [`ServeError`] says what is in the way and what to do. Nothing is served then.
    pub async fn start(directory: &Path, settings: &Settings) -> Result<Server, ServeError> {
        // The cheap things first, so that a port in use is found before a long recovery.
        let control = match (&settings.tls, settings.insecure) {
            (None, Insecure::No) => None,
            _ => Some(tcp("control plane", "--listen", settings.listen).await?),
        };
        let mut by_tcp = builder();
        if let Some(directory) = &settings.tls {
            let unusable = |source: tonic::transport::Error| TlsError::Unusable {
                directory: directory.clone(),
                why: refusal::chain(&source),
            };
            by_tcp = by_tcp.tls_config(tls::load(directory)?).map_err(unusable)?;
        }
        let metrics = tcp("metrics", "--metrics", settings.metrics).await?;
        let config = settings.engine(directory);
        let starting = tokio::task::spawn_blocking(move || Engine::start(config));
        let engine = starting.await.expect("starting the engine does not panic")?;
        // Behind the engine: it holds the store's lock, so a socket that is left over is nobody's.
        let path = settings.socket.clone().unwrap_or_else(|| default_socket(directory));
        let (socket, local) = unix(path).await?;

        let (stopping, stop_streams) = watch::channel(false);
        let (closing, close) = watch::channel(false);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<LeaseholdServer<Calls>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let calls = Calls::new(engine.clone(), Tenants::load(directory, engine.config())?, stop_streams);
        let calls = LeaseholdServer::new(calls).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let routes = Routes::new(calls).add_service(health_service).add_service(reflection);

        let control_address = control.as_ref().map(|port| port.address);
        let metrics_address = metrics.address;
        let mut serving = JoinSet::new();
        if let Some(Port { listener, .. }) = control {
            let over_tcp = by_tcp
                .add_routes(routes.clone())
                .serve_with_incoming_shutdown(door::guests(listener, settings.door()), told(close.clone()));
            serving.spawn(async move { log_end("control plane", over_tcp.await) });
        }
        let over_unix = builder()
            .add_routes(routes)
            .serve_with_incoming_shutdown(UnixListenerStream::new(local), told(close.clone()));
        serving.spawn(async move { log_end("control socket", over_unix.await) });
        let page = metrics::router(engine.clone());
        let scrapes = axum::serve(metrics.listener, page).with_graceful_shutdown(told(close));
        serving.spawn(async move { log_end("metrics", scrapes.await) });

        let server = Server {
            engine,
            control: control_address,
            metrics: metrics_address,
            socket,
            stopping,
            closing,
            serving,
        };
        server.log_start(settings);
        Ok(server)
    }

    fn log_start(&self, settings: &Settings) {
        for note in &self.engine.started().notes {
            tracing::info!("{note}");
        }
        let data = self.data_address();
        let control = self.control.map_or("off".to_owned(), |address| address.to_string());
        tracing::info!(%control, %data, metrics = %self.metrics, socket = %self.socket().display(), "serving");
        if settings.insecure == Insecure::Anywhere {
            tracing::warn!(
                "the control plane asks nobody who they are: whoever reaches {control} may do everything"
            );
        }
        let encrypted = self.engine.started().data_tls_key.is_some();
        if !data.ip().is_loopback() && !encrypted {
            tracing::warn!(
                "data connections at {data} show a token of a session, and are not encrypted: \
                 let only trusted networks reach it, or set `fabric = \"iwarp-tls\"`"
            );
        }
    }

    /// Where the control plane listens, if it does so on TCP.
    #[must_use]
    pub fn control_address(&self) -> Option<SocketAddr> {
        self.control
    }

    /// Where data connections are accepted.
    #[must_use]
    pub fn data_address(&self) -> SocketAddr {
        self.engine.started().data_address
    }

    /// By which kinds of fabric: their names.
    #[must_use]
    pub fn data_by(&self) -> Vec<&'static str> {
        self.engine.started().data_by.iter().map(|kind| kind.name()).collect()
    }

    /// Where `/metrics` is.
    #[must_use]
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// The control plane's unix socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket.path
    }

    /// The engine behind it.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Takes no new work, ends all sessions, writes back what was committed, and ends.
    ///
    /// # Errors
    /// [`StopError`]: the server has ended all the same, and the next start recovers.
    pub async fn stop(mut self) -> Result<(), StopError> {
        self.stopping.send_replace(true);
        let stopped = self.engine.stop().await;
        self.closing.send_replace(true);
        let finished = async { while self.serving.join_next().await.is_some() {} };
        if tokio::time::timeout(FINISH, finished).await.is_err() {
            tracing::debug!("calls in flight were cut off");
        }
        stopped
    }
}

fn builder() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
}

/// Returns once it is told, or nobody is left to tell.
async fn told(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|told| *told).await;
}

fn log_end<E: std::fmt::Display>(what: &str, ended: Result<(), E>) {
    if let Err(error) = ended {
        tracing::error!("the {what} ended: {error}");
    }
}

/// The default unix socket of the store in `directory`.
#[must_use]
pub fn default_socket(directory: &Path) -> PathBuf {
    directory.join(".leasehold/control.sock")
}
