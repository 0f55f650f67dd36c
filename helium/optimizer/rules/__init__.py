"""The rules. A rule's file, class, switch, test and golden file share one stem."""
