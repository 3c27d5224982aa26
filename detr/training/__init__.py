"""What only training needs: the matcher, the losses, the model as a learner."""
