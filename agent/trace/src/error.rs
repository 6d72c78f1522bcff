use std::io;

/// Why a trace cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The bytes cannot be read or written.
    #[error("the trace cannot be read or written")]
    Io(#[from] io::Error),
    /// Something else than a trace.
    #[error("this is no exit trace")]
    NoTrace,
    /// A trace of a later format.
    #[error(
        "the trace has format {found}, and this program reads up to {}; update it",
        crate::FORMAT
    )]
    Format {
        /// Its format.
        found: u32,
    },
    /// The header cannot be.
    #[error("the header of the trace is damaged: {0}")]
    Header(&'static str),
    /// A block is cut or damaged. What came before it is whole.
    #[error("the trace is damaged in block {block}: {what}; the {frames} frames before it are whole")]
    Damaged {
        /// Number of the block, from 0 on.
        block: u64,
        /// Frames before it.
        frames: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A frame that does not fit the header.
    #[error("the frame does not fit its trace: {0}")]
    Misfit(&'static str),
}
