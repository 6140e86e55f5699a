//! Lists from the kernel by route netlink, in the calling thread's network namespace.

use anyhow::{Context as _, Result, bail};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// How often a list that changes while the kernel gives it is asked for.
const ATTEMPTS: usize = 5;

/// The bytes of a question.
fn request(question: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    request
}

/// A socket to ask the kernel with.
pub(super) struct Netlink(Socket);

impl Netlink {
    pub(super) fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("failed to open a netlink socket")?;
        socket.bind_auto().context("failed to bind a netlink socket")?;
        socket.connect(&SocketAddr::new(0, 0)).context("failed to connect to the kernel by netlink")?;
        Ok(Self(socket))
    }

    /// The kernel's one answer to one question.
    pub(super) fn ask(&self, what: &str, question: RouteNetlinkMessage) -> Result<RouteNetlinkMessage> {
        self.0
            .send(&request(question, NLM_F_REQUEST), 0)
            .with_context(|| format!("failed to ask the kernel for its {what}"))?;
        let context = || format!("failed to read the kernel's {what} by netlink");
        let (datagram, _) = self.0.recv_from_full().with_context(context)?;
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram).with_context(context)?;
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => Ok(inner),
            NetlinkPayload::Error(error) => Err(error.to_io()).with_context(context),
            other => bail!("{}: found {other:?}", context()),
        }
    }

    /// One whole list from the kernel; asked again when it changed under the kernel's hands.
    pub(super) fn dump(&self, what: &str, question: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>> {
        let request = request(question, NLM_F_REQUEST | NLM_F_DUMP);
        for _ in 0..ATTEMPTS {
            self.0.send(&request, 0).with_context(|| format!("failed to ask the kernel for its {what}"))?;
            let answer =
                self.answer().with_context(|| format!("failed to read the kernel's {what} by netlink"))?;
            if let Some(found) = answer {
                return Ok(found);
            }
        }
        bail!("the kernel's {what} changed while they were read, {ATTEMPTS} times in a row; try again")
    }

    /// The messages up to the end of the list, or `None` if the list changed meanwhile.
    fn answer(&self) -> Result<Option<Vec<RouteNetlinkMessage>>> {
        let (mut found, mut interrupted) = (Vec::new(), false);
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)?;
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                let length = (message.header.length as usize).next_multiple_of(4);
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(found)),
                    NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    _ => {}
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}
