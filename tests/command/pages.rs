//! What is written for people: that it mentions every option, and that what it shows works.
