//! (under construction)
pub mod book;
pub mod dice;
pub mod line;
pub mod machine;
pub mod reader;
pub mod ring;
