"""What the front says of itself: a page for people, a document for programs, the bodies of both."""
