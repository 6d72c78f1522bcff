//! Gives devices their next certificate, for the key of the one in use.
//!
//! That a message came from a device is the broker's word. A certificate outlasts it, so that whoever asks for one must
//! have the key of a certificate that holds.

use offramp_link::{Link, Publication};
use offramp_proto::{Digest, Kind, RenewalAnswer, RenewalRequest, TenantId, Topic, encode};
use tokio::sync::{mpsc, watch};

use std::sync::Arc;
use std::time::Duration;

use crate::authority::{Authority, AuthorityError};
use crate::statistics::Statistics;
use crate::store::{Renewed, Store, StoreError, now};

/// Requests that may wait; more are dropped, and their devices ask again.
pub(crate) const QUEUE: usize = 1024;
/// A device that has not taken an answer by then has asked again.
const EXPIRY: Duration = Duration::from_secs(3600);

/// What the task works with.
pub(crate) struct Renewals {
    pub(crate) tenant: TenantId,
    pub(crate) store: Store,
    pub(crate) authority: Arc<Authority>,
    pub(crate) link: Link,
    pub(crate) statistics: watch::Sender<Statistics>,
}

/// Why there is no answer; the device asks again.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Renewals {
    /// Answers until nobody can ask any more.
    pub(crate) async fn run(self, mut requests: mpsc::Receiver<RenewalRequest>) {
        while let Some(request) = requests.recv().await {
            let device = &request.device;
            let answer = match self.answer(&request).await {
                Ok(answer) => answer,
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(%device, error, "a certificate could not be renewed");
                    continue;
                }
            };
            if let Some(reason) = &answer.refused {
                self.statistics.send_modify(|s| s.refused += 1);
                tracing::warn!(%device, reason, "renewal of a certificate refused");
            }
            let topic = Topic::new(&self.tenant, device, Kind::Certificate).to_string();
            let Ok(bytes) = encode(&answer) else { continue };
            let publication = Publication::new(topic, bytes).expires_after(EXPIRY);
            if let Err(error) = self.link.publish(publication).await {
                tracing::warn!(%device, %error, "the answer to a renewal was not sent");
            }
        }
    }

    async fn answer(&self, request: &RenewalRequest) -> Result<RenewalAnswer, Failure> {
        let answer = |certificate: Result<String, String>| RenewalAnswer {
            request: Digest::of(request.request.as_bytes()),
            refused: certificate.as_ref().err().cloned(),
            certificate: certificate.ok(),
        };
        let refused = |why: &str| Ok(answer(Err(why.to_owned())));
        let signed = self.authority.asker(request).and_then(|shown| {
            let issued = self.authority.device(&request.request, &request.device)?;
            Ok((shown, issued))
        });
        let (shown, issued) = match signed {
            Ok(signed) => signed,
            Err(error @ (AuthorityError::Request(_) | AuthorityError::Proof | AuthorityError::Name)) => {
                return refused(&error.to_string());
            }
            Err(error) => return Err(error.into()),
        };
        let (device, certificate) = (request.device.clone(), issued.certificate.clone());
        match self.store.certificate_renew(device, shown, issued, now()).await? {
            Renewed::Done => {
                self.statistics.send_modify(|s| s.renewals += 1);
                tracing::info!(device = %request.device, "certificate renewed");
                Ok(answer(Ok(certificate)))
            }
            Renewed::Again(certificate) => Ok(answer(Ok(certificate))),
            Renewed::Unknown => refused(
                "the key in use belongs to no certificate of this device that holds: enrol it again with a token of \
                 `offramp-fleet enrol --device`",
            ),
            Renewed::Quarantined => refused("the device is in quarantine: see `offramp-fleet release`"),
            Renewed::TooMany => refused("the device was given too many certificates today"),
        }
    }
}
