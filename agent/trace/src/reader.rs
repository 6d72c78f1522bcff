use std::io::{self, Read};

use crate::frame::{Frame, Header, PolicyId};
use crate::{FORMAT, MAGIC, MAX_BLOCK, MAX_FRAMES, MAX_HEADER, TraceError, codec};

/// Reads a trace frame by frame, a block at a time.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    header: Header,
    block: Vec<u8>,
    /// Where the next frame begins in the block.
    at: usize,
    frames_left: u32,
    policy: Option<PolicyId>,
    blocks: u64,
    frames: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the head of a trace.
    ///
    /// # Errors
    /// When it is none, of a later format, damaged, or cannot be read.
    pub fn new(mut input: R) -> Result<Self, TraceError> {
        let mut head = [0; 16];
        input.read_exact(&mut head).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TraceError::NoTrace,
            _ => error.into(),
        })?;
        let [magic, format, length, crc] = *head.as_chunks().0 else {
            return Err(TraceError::NoTrace);
        };
        if magic != MAGIC {
            return Err(TraceError::NoTrace);
        }
        // The two bytes behind the format are 0.
        let format = u32::from_le_bytes(format);
        if format != u32::from(FORMAT) {
            return Err(TraceError::Format { found: format });
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_HEADER {
            return Err(TraceError::Header("it is too long"));
        }
        let text = read(&mut input, length)?.ok_or(TraceError::Header("it is cut"))?;
        if crc32fast::hash(&text) != u32::from_le_bytes(crc) {
            return Err(TraceError::Header("its checksum is another"));
        }
        let header: Header = serde_cbor::from_slice(&text).map_err(|_| TraceError::Header("it is no header"))?;
        header.check()?;
        Ok(Self {
            input,
            header,
            block: Vec::new(),
            at: 0,
            frames_left: 0,
            policy: None,
            blocks: 0,
            frames: 0,
            ended: false,
        })
    }

    /// What holds for all frames.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next frame; none at the end.
    ///
    /// # Errors
    /// At the first block that is damaged or cannot be read; there is nothing behind it.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, TraceError> {
        if self.ended {
            return Ok(None);
        }
        let next = self.read_frame();
        self.ended = !matches!(next, Ok(Some(_)));
        next
    }

    fn read_frame(&mut self) -> Result<Option<Frame>, TraceError> {
        if self.frames_left == 0 && !self.read_block()? {
            return Ok(None);
        }
        let mut rest = &self.block[self.at..];
        let frame = codec::decode(&self.header, &mut rest, &mut self.policy).map_err(|what| self.damaged(what))?;
        self.at = self.block.len() - rest.len();
        self.frames_left -= 1;
        if self.frames_left == 0 && self.at < self.block.len() {
            return Err(self.damaged("it has more than its frames"));
        }
        self.frames += 1;
        Ok(Some(frame))
    }

    /// Whether there is another block.
    fn read_block(&mut self) -> Result<bool, TraceError> {
        let mut head = [0; 12];
        let got = fill(&mut self.input, &mut head)?;
        if got == 0 {
            return Ok(false);
        }
        if got < head.len() {
            return Err(self.damaged("it is cut"));
        }
        let [length, frames, crc] = head.as_chunks().0 else {
            return Ok(false);
        };
        let [length, frames, crc] = [length, frames, crc].map(|number| u32::from_le_bytes(*number));
        if length as usize > MAX_BLOCK || !(1..=MAX_FRAMES).contains(&frames) {
            return Err(self.damaged("it is larger than blocks are"));
        }
        let Some(block) = read(&mut self.input, length as usize)? else {
            return Err(self.damaged("it is cut"));
        };
        if crc32fast::hash(&block) != crc {
            return Err(self.damaged("its checksum is another"));
        }
        self.block = block;
        (self.at, self.frames_left, self.policy) = (0, frames, None);
        self.blocks += 1;
        Ok(true)
    }

    fn damaged(&self, what: &'static str) -> TraceError {
        TraceError::Damaged {
            block: self.blocks,
            frames: self.frames,
            what,
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Frame, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_frame().transpose()
    }
}

/// Fills as much of the buffer as there is.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match input.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

/// So many bytes; none where there are fewer. Takes no more memory than there are bytes.
fn read(input: &mut impl Read, bytes: usize) -> io::Result<Option<Vec<u8>>> {
    let mut data = Vec::new();
    input.take(bytes as u64).read_to_end(&mut data)?;
    Ok((data.len() == bytes).then_some(data))
}
