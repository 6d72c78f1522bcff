//! Messages that arrived, on their way to their consumer.

use rumqttc::{AsyncClient, ManualAck};
use tokio::sync::mpsc;

use crate::message::Message;

/// The messages that arrive over a [`Link`](crate::Link), in the order the broker sent them.
///
/// While nobody takes them they stay here, up to [`Config::window`](crate::Config::window) of a
/// connection; the broker keeps the rest. Dropping the inbox leaves the link connected: what
/// arrives from then on is not acknowledged and stays with the broker.
#[derive(Debug)]
pub struct Inbox(pub(crate) mpsc::Receiver<Delivery>);

impl Inbox {
    /// The next message; none once the link is closed and the inbox is empty.
    ///
    /// Cancel safe: a message is either still here or has been returned.
    pub async fn recv(&mut self) -> Option<Delivery> {
        self.0.recv().await
    }
}

/// A message and the duty to acknowledge it.
#[derive(Debug)]
#[must_use = "a message that is not acknowledged is delivered again after the next connect"]
pub struct Delivery {
    /// The message.
    pub message: Message,
    pub(crate) receipt: Option<Receipt>,
}

/// How to acknowledge a message on the connection it came over.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) client: AsyncClient,
    pub(crate) ack: ManualAck,
}

impl Delivery {
    /// Tells the broker that the message has been dealt with and need not come again. To be called
    /// when it has been made durable, or turned out not to matter.
    ///
    /// Without it the message comes again, but only after the next connect, and its place in the
    /// window stays taken until then. If the connection it came over is gone, this does nothing,
    /// and the message comes again too: a consumer must bear to see it twice.
    pub fn acknowledge(self) {
        if let Some(Receipt { client, ack }) = self.receipt {
            // Fails if the connection is gone. It never fails for want of room: there is room for
            // more acknowledgements than the window has messages.
            let _ = client.try_manual_ack(ack);
        }
    }
}
