//! `grpc.health.v1.Health`: whether the engine is at work, for Kubernetes' probes and gRPC's own clients.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message as _;
use tokio::time;

use super::proto::{HealthCheckRequest, HealthCheckResponse, ServingStatus};
use super::{is_serving, observer};
use crate::agent::status::Board;
use crate::grpc::server::{Answering, Sender, Service};
use crate::grpc::{Code, Status};

/// The service's full name.
pub(super) const NAME: &str = "grpc.health.v1.Health";

/// How often it is looked at for whoever watches.
const EVERY: Duration = Duration::from_secs(1);

pub(super) struct Health(Arc<Board>);

impl Service for Health {
    fn call<'a>(&'a self, method: &'a str, request: Bytes, sender: &'a mut Sender) -> Answering<'a> {
        Box::pin(async move {
            let asked =
                HealthCheckRequest::decode(request).map_err(|error| Status::invalid(error.to_string()))?;
            let is_known = ["", observer::NAME].contains(&asked.service.as_str());
            match method {
                "Check" if is_known => sender.send(&self.now()).await,
                "Check" => {
                    let words = format!("there is no service `{}` here", asked.service);
                    Err(Status::new(Code::NotFound, words))
                }
                "Watch" if is_known => self.watch(sender).await,
                // It might come, says the protocol.
                "Watch" => {
                    sender.send(&response(ServingStatus::Unknown)).await?;
                    std::future::pending().await
                }
                other => Err(Status::unimplemented(other)),
            }
        })
    }
}

impl Health {
    pub(super) fn new(board: Arc<Board>) -> Self {
        Self(board)
    }

    fn now(&self) -> HealthCheckResponse {
        let is_serving = is_serving(&self.0.read(), SystemTime::now());
        response(if is_serving { ServingStatus::Yes } else { ServingStatus::No })
    }

    async fn watch(&self, sender: &mut Sender) -> Result<(), Status> {
        let mut said = None;
        loop {
            let now = self.now();
            if said.replace(now) != Some(now) {
                sender.send(&now).await?;
            }
            time::sleep(EVERY).await;
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}
