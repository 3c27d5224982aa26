"""Ray as the job finds it: the session, the device, where stages run, what they report."""
