"""A judged study: what verdicts say of systems, of judges and of the losses, and its report."""
