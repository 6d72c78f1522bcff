use std::io::Write;

use crate::frame::{Frame, Header, PolicyId};
use crate::{FORMAT, MAGIC, MAX_BLOCK, MAX_FRAMES, MAX_HEADER, TraceError, codec};

/// Bytes at which a block is ended.
const BLOCK: usize = 32 << 10;

/// Writes a trace.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    header: Header,
    block: Vec<u8>,
    frames: u32,
    /// Policy of the latest frame in the block.
    policy: Option<PolicyId>,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a trace.
    ///
    /// # Errors
    /// When the header is out of its bounds, or cannot be written.
    pub fn new(mut out: W, header: Header) -> Result<Self, TraceError> {
        header.check()?;
        let text = serde_cbor::to_vec(&header).map_err(|_| TraceError::Header("it cannot be encoded"))?;
        if text.len() > MAX_HEADER {
            return Err(TraceError::Header("it is too long"));
        }
        let mut head = Vec::with_capacity(16 + text.len());
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&u32::from(FORMAT).to_le_bytes());
        head.extend_from_slice(&(text.len() as u32).to_le_bytes());
        head.extend_from_slice(&crc32fast::hash(&text).to_le_bytes());
        head.extend_from_slice(&text);
        out.write_all(&head)?;
        Ok(Self {
            out,
            header,
            block: Vec::with_capacity(BLOCK + (4 << 10)),
            frames: 0,
            policy: None,
            written: head.len() as u64,
        })
    }

    /// Adds a frame. It is written once its block is full, or [flushed](Self::flush).
    ///
    /// # Errors
    /// When the frame does not fit the header, or its block cannot be written.
    pub fn push(&mut self, frame: &Frame) -> Result<(), TraceError> {
        // What nobody decided is told by a block that names nobody.
        if frame.policy.is_none() && self.policy.is_some() {
            self.flush()?;
        }
        let (length, policy) = (self.block.len(), self.policy);
        let fits = codec::encode(&self.header, frame, &mut self.policy, &mut self.block).and_then(|()| {
            let fits = self.block.len() <= MAX_BLOCK;
            fits.then_some(()).ok_or(TraceError::Misfit("it is too large"))
        });
        if fits.is_err() {
            self.block.truncate(length);
            self.policy = policy;
            return fits;
        }
        self.frames += 1;
        if self.block.len() >= BLOCK || self.frames == MAX_FRAMES {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes the frames that wait for their block to be full.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn flush(&mut self) -> Result<(), TraceError> {
        if self.frames > 0 {
            let mut head = [0; 12];
            head[..4].copy_from_slice(&(self.block.len() as u32).to_le_bytes());
            head[4..8].copy_from_slice(&self.frames.to_le_bytes());
            head[8..].copy_from_slice(&crc32fast::hash(&self.block).to_le_bytes());
            self.out.write_all(&head)?;
            self.out.write_all(&self.block)?;
            self.written += (head.len() + self.block.len()) as u64;
            self.block.clear();
            self.frames = 0;
            self.policy = None;
        }
        Ok(self.out.flush()?)
    }

    /// Bytes so far, those of the open block included.
    pub fn bytes(&self) -> u64 {
        self.written + self.block.len() as u64
    }

    /// Ends the trace.
    ///
    /// # Errors
    /// When the last block cannot be written.
    pub fn finish(mut self) -> Result<W, TraceError> {
        self.flush()?;
        Ok(self.out)
    }
}
